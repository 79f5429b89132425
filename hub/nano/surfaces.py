"""Normal surfaces and simple objects, drawn from random numbers: what a picture looks like before anything is wrong.

A family is a short function from a canvas to a picture (a texture) or to a picture and its foreground (an object).
Each picture of a batch has its own scale, contrast, colour, orientation and regularity. Much that is drawn here is
salient yet normal - holes, seams, knots, highlights, print - so that being salient alone does not make a defect.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas, mix, standardize

TABLE = 32  # random numbers of lattice cells repeat after this many cells; a power of two


@dataclass(frozen=True)
class Surface:
    """A family of normal pictures; `draw` gives the picture and where a defect may lie."""

    name: str
    nouns: tuple[str, ...]
    domain: str
    draw: Callable[[Canvas], tuple[Tensor, Tensor]]


SURFACES: dict[str, Surface] = {}

# Kept out of training for validation: a texture, a grid, print, a compact object, a long object, a medical picture.
HELD_OUT: tuple[str, ...] = ("felt", "perforated plate", "printed label", "nut", "zipper", "skin")


def family(name: str, *nouns: str, domain: str = "industrial", edge: float = 0.0, hole: float = 0.0) -> Callable:
    """Register a drawing function; a texture may return the picture alone. `edge` and `hole` are the chances that the
    texture is that of a part whose border crosses the picture, or that has a round hole."""

    def register(function: Callable[[Canvas], Tensor | tuple[Tensor, Tensor]]) -> Callable:
        def draw(c: Canvas) -> tuple[Tensor, Tensor]:
            drawn = function(c)
            image, foreground = drawn if isinstance(drawn, tuple) else (drawn, torch.ones_like(c.x))
            if edge or hole:
                image, foreground = cut(c, image, c.chance(edge), c.chance(hole))
            return image.clamp(0, 1).expand(c.n, 3, c.size, c.size).contiguous(), foreground.clamp(0, 1).contiguous()

        SURFACES[name] = Surface(name, nouns, domain, draw)
        return function

    return register


def cut(c: Canvas, image: Tensor, edge: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """The picture as that of a part that ends at a straight or slightly curved border, or that has a drilled hole."""
    u, v = c.coordinates(angle(c), 1.0)
    border = v + c.uniform(-0.4, 0.4) * u.square() * c.chance(0.4) - c.uniform(0.15, 0.45)
    bore = c.uniform(0.06, 0.2) - radius(u - c.uniform(-0.4, 0.4), v - c.uniform(-0.4, 0.4))
    d = torch.maximum(torch.where(edge > 0, border, -1.0), torch.where(hole > 0, bore, -1.0))
    level = choose(c, c.uniform(0.01, 0.15), c.uniform(0.01, 0.5), c.uniform(0.7, 0.98))
    beyond = (level + c.normal(3) * 0.02) * (1 + 0.15 * smooth(c)) + c.uniform(0, 0.02) * c.white()
    rim = 1 + c.uniform(-0.5, 0.6) * c.smoothstep((d + 0.012).abs() - c.uniform(0.004, 0.02), 3)
    inside = c.smoothstep(d, c.log_uniform(1.5, 5))
    return mix(beyond, image * rim, inside), inside


# -- fields shared by the families -----------------------------------------------------------------------------------


def choose(c: Canvas, *options: Tensor | float) -> Tensor:
    """One of the options for each picture, all equally likely."""
    which = c.integers(0, len(options))
    chosen = torch.as_tensor(options[0], device=c.device)
    for i, option in enumerate(options[1:], 1):
        chosen = torch.where(which == i, option, chosen)
    return chosen


def pick(table: Tensor, key: Tensor) -> Tensor:
    """table[picture, key] for a table (n, m, 1, 1) and a field of keys."""
    return table.flatten(1).gather(1, key.flatten(1)).view_as(key)


def cell_key(i: Tensor, j: Tensor) -> Tensor:
    """Key of lattice cell (i, j) into a table of TABLE * TABLE numbers."""
    return (i.long() & (TABLE - 1)) * TABLE + (j.long() & (TABLE - 1))


def own(c: Canvas, key: Tensor) -> Tensor:
    """A uniform number of each cell's own."""
    return pick(c.uniform(k=TABLE * TABLE), key)


def profile(c: Canvas, t: Tensor, slope: Tensor | float = 1.0, low_cut: Tensor | float = 0.0) -> Tensor:
    """A random function of one coordinate, of period 1, zero mean, unit deviation: for streaks, rings and layers."""
    samples = 512
    f = torch.arange(samples // 2 + 1, device=c.device).clamp(min=1.0).view(1, -1)
    slope, low_cut = (x.view(-1, 1) if isinstance(x, Tensor) else x for x in (slope, low_cut))
    noise = torch.randn(c.n, samples, generator=c.generator, device=c.device)
    noise = torch.fft.irfft(torch.fft.rfft(noise) * (f + low_cut) ** -slope, n=samples)
    noise = (noise - noise.mean(1, keepdim=True)) / (noise.std(1, keepdim=True) + 1e-6)
    position = (t - t.floor()) * samples
    i = position.long()
    return mix(pick(noise, i & (samples - 1)), pick(noise, (i + 1) & (samples - 1)), position - i)


def voronoi(c: Canvas, u: Tensor, v: Tensor, jitter: Tensor | float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest seed of a jittered unit lattice, how much farther the second is, the nearest's key."""
    i, j = u.floor(), v.floor()
    a, b = u - i, v - j
    ox, oy = (c.uniform(-0.5, 0.5, TABLE * TABLE) * jitter for _ in range(2))
    rows = [((i.long() + d) & (TABLE - 1)) * TABLE for d in (-1, 0, 1)]
    columns = [(j.long() + d) & (TABLE - 1) for d in (-1, 0, 1)]
    first, second, nearest = torch.full_like(a, 9.0), torch.full_like(a, 9.0), torch.zeros_like(rows[0])
    for di, row in zip((-0.5, 0.5, 1.5), rows, strict=True):
        for dj, column in zip((-0.5, 0.5, 1.5), columns, strict=True):
            key = row + column
            d = (pick(ox, key) + (di - a)).square() + (pick(oy, key) + (dj - b)).square()
            second = torch.minimum(second, torch.maximum(first, d))
            nearest = torch.where(d < first, key, nearest)
            first = torch.minimum(first, d)
    return first.sqrt(), second.sqrt() - first.sqrt(), nearest


def lattice(u: Tensor, v: Tensor, shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates in [-0.5, 0.5] within unit cells whose odd rows are shifted (0.5 for bricks), and the cells' keys."""
    j = v.floor()
    u = u + shift * torch.remainder(j, 2)
    i = u.floor()
    return u - i - 0.5, v - j - 0.5, cell_key(i, j)


def hexagons(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for hexagonal cells one unit apart."""
    h = 3**0.5
    i0, j0 = (u + 0.5).floor(), (v / h + 0.5).floor()
    i1, j1 = u.floor(), (v / h).floor()
    a0, b0, a1, b1 = u - i0, v - j0 * h, u - i1 - 0.5, v - (j1 + 0.5) * h
    even = a0.square() + b0.square() < a1.square() + b1.square()
    key = torch.where(even, cell_key(i0, 2 * j0), cell_key(i1, 2 * j1 + 1))
    return torch.where(even, a0, a1), torch.where(even, b0, b1), key


def smooth(c: Canvas, slope: Tensor | float = 2.0) -> Tensor:
    """A smooth fractal, drawn small and enlarged because it is everywhere; unlike the others not periodic."""
    small = Canvas(c.n, 36, c.generator).fractal(slope)[..., 2:34, 2:34]
    return F.interpolate(small, size=(c.size, c.size), mode="bicubic", align_corners=False)


def relief(c: Canvas, height: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of a height field (a fraction of the side) along the light and across it."""
    padded = F.pad(height, (1, 1, 1, 1), mode="replicate") * (0.5 * c.size)
    gx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    gy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return gx * light.cos() + gy * light.sin(), gy * light.cos() - gx * light.sin()


def lit(c: Canvas, height: Tensor, light: Tensor, gloss: Tensor | float = 0.3) -> tuple[Tensor, Tensor]:
    """Factor by which a height field's diffuse light varies, and a highlight to be added."""
    along, across = relief(c, height, light)
    highlight = gloss * torch.exp(-((along - 0.5).square() + across.square()) * 7)
    return (1 + 0.45 * along.clamp(-1.6, 1.6) - 0.08 * across.abs().clamp(max=2)).clamp(0.15, 2), highlight


def angle(c: Canvas) -> Tensor:
    """A direction: half of them along an axis, as parts are mostly photographed."""
    return choose(c, 0.0, math.pi / 2, c.uniform(0, math.pi), c.uniform(0, math.pi)) + 0.03 * c.normal()


def warp(field: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The field read at (u, v) in [-1, 1], mirrored beyond."""
    grid = torch.cat([u.expand_as(v), v], 1).permute(0, 2, 3, 1)
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def textured(
    c: Canvas,
    field: Tensor,
    contrast: tuple[float, float] = (0.04, 0.3),
    colour: Tensor | None = None,
    low: float = 0.12,
    high: float = 0.88,
) -> Tensor:
    """A colour modulated by the field, with a slower drift of brightness and of tint as on any real material."""
    colour = c.colour(0.35, low, high) if colour is None else colour
    # The tint varies in proportion to how coloured the material is: grey ones must not turn into rainbows.
    tint = c.normal(3) * colour.std(1, keepdim=True) * c.uniform(0, 0.8)
    slow = smooth(c, c.uniform(1.6, 2.6))
    strength = c.log_uniform(*contrast)
    return colour * (1 + strength * field + c.uniform(0, 0.08) * slow) + tint * (strength * field + 0.1 * slow)


def grain(c: Canvas) -> Tensor:
    """Fine-grained 1/f noise."""
    return c.fractal(c.uniform(0.1, 1.1))


def metal(c: Canvas, low: float = 0.25, high: float = 0.8) -> Tensor:
    """A nearly neutral colour; now and then that of brass or copper."""
    warm = torch.tensor([1.08, 0.98, 0.78], device=c.device).view(1, 3, 1, 1)
    return mix(c.colour(0.05, low, high), c.uniform(low, high) * warm, c.chance(0.12))


def glyphs(c: Canvas, u: Tensor, v: Tensor, spaces: float = 0.2) -> Tensor:
    """Signed distance, in character widths, to lines of characters-like marks of 1 x 1.6 units."""
    a, b, key = lattice(u, v / 1.6)
    b = b * 1.6
    code = pick(c.integers(1, 512, TABLE * TABLE) * (c.uniform(k=TABLE * TABLE) > spaces), key).int()
    half_w, half_h, w = 0.32, 0.5, c.uniform(0.05, 0.11)
    ax, ay = a.abs(), b.abs()
    flat, tall_up, tall_down = ax - half_w, (b + half_h / 2).abs() - half_h / 2, (b - half_h / 2).abs() - half_h / 2
    strokes = [torch.maximum(flat, (b - y).abs()) for y in (-half_h, 0.0, half_h)]
    strokes += [torch.maximum(t, (a - x).abs()) for x in (-half_w, half_w) for t in (tall_up, tall_down)]
    strokes += [torch.maximum(ay - half_h, (a * s + b * 0.6).abs() * 0.9) for s in (-1.0, 1.0)]
    best = torch.full_like(a, 1.0)
    for bit, stroke in enumerate(strokes):
        best = torch.where((code & (1 << bit)) > 0, torch.minimum(best, stroke), best)
    return best - w


def fold(x: Tensor) -> Tensor:
    """A triangle wave of period 1 between 0 and 1."""
    return ((x - x.floor()) * 2 - 1).abs()


# -- objects on a ground ---------------------------------------------------------------------------------------------


@dataclass
class Frame:
    """Coordinates in which an object has half-length 1, for one object or a lattice of them."""

    c: Canvas
    u: Tensor
    v: Tensor
    r: Tensor  # half-length as a fraction of the side
    key: Tensor  # which of the objects
    light: Tensor

    def inside(self, distance: Tensor, softness_px: float = 2.0) -> Tensor:
        return self.c.smoothstep(distance * self.r, softness_px)

    def lit(self, height: Tensor, gloss: Tensor | float = 0.3) -> tuple[Tensor, Tensor]:
        """As `lit`, of a height in the object's own unit."""
        return lit(self.c, height * self.r, self.light, gloss)


def place(c: Canvas, low: float = 0.4, high: float = 1.0, several: float = 0.25, thin: float = 1.0) -> Frame:
    """An object's frame; `several` is the chance of 2 x 2 or 3 x 3 objects, `thin` its width over its length."""
    many = c.chance(several) * choose(c, 1.0, 1.0, 2.0) + 1
    one = (many < 1.5).float()
    r = mix(c.uniform(0.32, 0.46) / many, c.uniform(low, high) / 2, one)
    a, b, key = lattice(c.x * many, c.y * many)
    room = mix(0.5 / many - r, (0.5 - r * (0.5 + 0.5 * thin)).clamp(min=0) + 0.06, one) * c.uniform(0, 1)
    ox, oy = ((own(c, key) * 2 - 1) * room for _ in range(2))
    base = choose(c, c.uniform(0, 2 * math.pi), angle(c), angle(c))
    turn = base + (own(c, key) - 0.5) * choose(c, 0.0, 0.2, 2 * math.pi) * (1 - one)
    x, y = (a / many - ox) / r, (b / many - oy) / r
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    return Frame(c, u, v, r, key, c.uniform(0, 2 * math.pi))


def ground(c: Canvas) -> Tensor:
    """What objects lie on: dark, bright or middling; plain, clouded, grainy or streaked."""
    level = choose(c, c.uniform(0.02, 0.2), c.uniform(0.2, 0.7), c.uniform(0.7, 0.97))
    colour = (level + c.normal(3) * 0.06 * c.chance(0.6)).clamp(0.01, 0.99)
    u, v = c.coordinates(angle(c), 1.0)
    noise = c.fractal(choose(c, 2.0, c.uniform(0.1, 1.1)))
    streaks = profile(c, v * c.log_uniform(0.5, 2), c.uniform(0.3, 1)) * c.chance(0.2)
    return colour * (1 + (noise + streaks) * c.log_uniform(0.01, 0.13) + u * c.uniform(-0.4, 0.4))


def apart(c: Canvas, under: Tensor, colour: Tensor, least: float = 0.18) -> Tensor:
    """The colour, moved in brightness where the ground has nearly the same."""
    base = under.mean((1, 2, 3), keepdim=True)
    gap = colour.mean(1, keepdim=True) - base
    side = torch.where((gap > 0) & (base < 0.8) | (base < 0.2), 1.0, -1.0)
    return (colour + side * (least - gap * side).clamp(min=0)).clamp(0.02, 0.98)


def put(c: Canvas, under: Tensor, part: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The part over the ground, with a soft contact shadow."""
    shadow = c.blur(mask, c.uniform(0.01, 0.05) * c.size)
    strength = c.uniform(0, 0.6) * c.chance(0.7)
    return mix(under * (1 - strength * shadow), part, mask), mask


def box(u: Tensor, v: Tensor, w: Tensor | float, h: Tensor | float, corner: Tensor | float = 0.0) -> Tensor:
    """Signed distance to a box of half-width w and half-height h with rounded corners."""
    x, y = u.abs() - w + corner, v.abs() - h + corner
    return (x.clamp(min=0).square() + y.clamp(min=0).square()).sqrt() + torch.maximum(x, y).clamp(max=0) - corner


def bevel(distance: Tensor, width: Tensor | float) -> Tensor:
    """Height of a body with the given signed distance whose edge is rounded over `width`."""
    t = (-distance / width).clamp(0.0, 1)
    return (1 - (1 - t).square() + 1e-4).sqrt() * width


def radius(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square() + 1e-9).sqrt()


def turn(u: Tensor, v: Tensor) -> Tensor:
    """The angle around the origin as a fraction of a full turn."""
    return torch.atan2(v, u) / (2 * math.pi)


# -- plain materials -------------------------------------------------------------------------------------------------


@family("cloudy", "mottled texture", "texture", "material", "surface")
def cloudy(c: Canvas) -> Tensor:
    coarse = c.fractal(c.uniform(0.5, 2.4), c.log_uniform(1, 30))
    stretched = c.anisotropic(angle(c), c.log_uniform(1, 0.08 * c.size), c.log_uniform(0.7, 0.03 * c.size))
    return textured(c, mix(choose(c, coarse, coarse, stretched), grain(c), c.uniform(0, 0.6)), (0.03, 0.35))


@family("brushed metal", "brushed metal plate", "metal plate", "metal", "plate", "surface", edge=0.12, hole=0.12)
def brushed_metal(c: Canvas) -> Tensor:
    a = angle(c)
    _, v = c.coordinates(a, c.log_uniform(0.4, 1.6), c.uniform(0, 0.01) * c.chance(0.5))
    lines = profile(c, v, c.uniform(0.0, 0.7))
    short = c.anisotropic(a, c.log_uniform(0.02, 0.15) * c.size, 0.6)
    field = mix(lines, short, c.uniform(0.2, 0.9)) + c.uniform(0, 0.4) * c.white()
    sheen = 1 + c.uniform(0, 0.25) * profile(c, v * 0.4 + 0.1, 2.2)
    return textured(c, field, (0.04, 0.22), metal(c)) * sheen


@family("cast metal", "cast metal part", "metal casting", "metal", "part", "surface", edge=0.15, hole=0.15)
def cast_metal(c: Canvas) -> Tensor:
    bumps = c.fractal(c.uniform(0.6, 1.4), c.log_uniform(4, 30))
    side, _ = relief(c, bumps * 0.01, c.uniform(0, 6.3))
    field = mix(standardize(side), bumps, c.uniform(0.1, 0.6)) + 0.3 * grain(c)
    _, v = c.coordinates(angle(c), 1.0, c.uniform(0, 0.05))
    edge = c.smoothstep(v - c.uniform(-0.45, 0.45), c.log_uniform(2, 25))
    step = 1 + (c.uniform(-0.5, 0.5) * edge) * c.chance(0.35)
    return textured(c, field, (0.06, 0.3), metal(c, 0.2, 0.65)) * step


@family(
    "polished metal", "ground metal surface", "polished metal", "metal", "steel sheet", "surface", edge=0.12, hole=0.1
)
def polished_metal(c: Canvas) -> Tensor:
    a = angle(c)
    u, v = c.coordinates(a, 1.0, c.uniform(0, 0.04))
    reflection = profile(c, u * c.log_uniform(0.2, 1.0), c.uniform(1.4, 2.6)) + 0.4 * c.fractal(2.4)
    arcs = radius(u - c.uniform(-2, 2), v - c.uniform(-2, 2))
    marks = choose(c, profile(c, v * 1.3, 0.2), profile(c, arcs, 0.2), c.anisotropic(a, 0.1 * c.size, 0.7))
    base = metal(c, 0.3, 0.85) * (1 + c.uniform(0.03, 0.3) * reflection)
    return textured(c, marks + 0.4 * c.white(), (0.01, 0.09), base)


@family("magnetic tile", "magnetic tile", "dark grainy metal", "tile", "metal", "surface")
def magnetic_tile(c: Canvas) -> Tensor:
    a = choose(c, 0.0, math.pi / 2) + 0.02 * c.normal()
    u, v = c.coordinates(a, 1.0, 0.01)
    streak = c.anisotropic(a, c.log_uniform(1, 0.06 * c.size), c.log_uniform(0.6, 1.5))
    field = mix(grain(c), streak, c.uniform(0, 0.8)) + c.uniform(0, 0.7) * c.fractal(1.6)
    shade = 1 + c.uniform(0.05, 0.35) * profile(c, v * 0.5 + 0.13, 2.2) + u * c.uniform(-0.5, 0.5)
    image = textured(c, field, (0.04, 0.2), c.colour(0.02, 0.14, 0.5)) * shade
    for _ in range(2):
        edge = (v * choose(c, 1.0, -1.0)) + c.uniform(0, 0.008) * c.fractal(2.2) - c.uniform(0.28, 0.5)
        strip = c.smoothstep(-edge, c.log_uniform(1.5, 12)) * c.chance(0.45)
        image = image * (1 + strip * choose(c, c.uniform(-0.9, -0.3), c.uniform(0.2, 0.9)))
        image = image + 0.15 * c.chance(0.3) * strip * c.smoothstep(edge.abs() - 0.008)
    return image


@family("rolled steel", "hot-rolled steel strip", "steel strip", "steel", "metal", "surface", edge=0.1)
def rolled_steel(c: Canvas) -> Tensor:
    a = angle(c)
    _, v = c.coordinates(a, 1.0, c.uniform(0, 0.02))
    bands = profile(c, v * c.log_uniform(0.5, 1.2), c.uniform(0.6, 1.6)) * c.uniform(0, 1)
    flecks = c.anisotropic(a, c.log_uniform(1, 0.1 * c.size), c.log_uniform(0.7, 2.5))
    scale = (c.fractal(c.uniform(1.0, 1.7)) * c.uniform(1, 3)).tanh()
    field = bands + c.uniform(0.2, 1) * flecks + c.uniform(0, 0.9) * scale + 0.4 * grain(c)
    return textured(c, field, (0.04, 0.2), c.colour(0.04, 0.25, 0.8))


@family("painted metal", "hammered painted metal", "painted metal", "coating", "paint", "surface", edge=0.12, hole=0.12)
def painted_metal(c: Canvas) -> Tensor:
    k = c.log_uniform(8, 45)
    u, v = c.coordinates(angle(c), k, 0.01)
    first, edge, _ = voronoi(c, u, v, c.uniform(0.6, 0.95))
    dents = first.square() + 0.25 * torch.exp(-edge * 5)
    peel = c.fractal(2.4, c.log_uniform(10, 60)) * 0.2
    height = choose(c, dents, peel, peel) / k * c.log_uniform(0.03, 0.7)
    shade, gleam = lit(c, height, c.uniform(0, 6.3), c.uniform(0, 0.5))
    return textured(c, grain(c), (0.01, 0.08), c.colour(0.4)) * shade + gleam * 0.6


@family("concrete", "concrete wall", "concrete", "cement", "wall", "surface", edge=0.06)
def concrete(c: Canvas) -> Tensor:
    k = c.log_uniform(6, 22)
    u, v = c.coordinates(c.uniform(0, 6), k, 0.01)
    first, _, key = voronoi(c, u, v)
    size = (own(c, key) - c.uniform(0.55, 0.98)).clamp(min=0) * 0.7
    pores = c.smoothstep((first - size) / k, 2.5) * (size > 0.02)
    stains = (c.fractal(1.8) * 1.5).tanh()
    field = c.fractal(c.uniform(0.8, 1.6)) + c.uniform(0, 1) * stains + 0.3 * c.white()
    colour = (c.uniform(0.35, 0.8) + c.normal(3) * 0.012).clamp(0, 1)
    _, w = c.coordinates(angle(c), c.uniform(1, 3), 0.004)
    seam = c.smoothstep(fold(w + c.uniform()) / 3 - 0.004, 2) * c.chance(0.25)
    return textured(c, field, (0.03, 0.11), colour) * (1 - c.uniform(0.2, 0.6) * pores) * (1 - 0.4 * seam)


@family("asphalt", "asphalt road", "road", "pavement", "asphalt", "surface")
def asphalt(c: Canvas) -> Tensor:
    k = c.log_uniform(14, 60)
    u, v = c.coordinates(c.uniform(0, 6), k, 0.01)
    _, edge, key = voronoi(c, u, v, 1.0)
    stone = own(c, key).pow(c.uniform(1, 5)) * (edge * 3).clamp(0, 1)
    field = standardize(stone) * c.uniform(0.3, 1) + 0.7 * grain(c) + c.uniform(0, 0.8) * c.fractal(1.6)
    image = textured(c, field, (0.06, 0.24), c.colour(0.05, 0.2, 0.65))
    _, w = c.coordinates(angle(c), 1.0, 0.01)
    offset = c.uniform(-0.5, 0.5)
    line = c.smoothstep((w - offset).abs() - c.uniform(0.03, 0.12) + 0.01 * c.fractal(1.0), 3) * c.chance(0.15)
    worn = (0.7 + 0.25 * c.fractal(0.8)).clamp(0, 1)
    track = 1 + c.uniform(-0.25, 0.25) * c.smoothstep((w - offset - 0.2).abs() - 0.15, 40)
    return mix(image * track, 0.45 + image, line * worn * 0.8)


@family("granite", "granite slab", "granite", "stone", "surface", edge=0.08)
def granite(c: Canvas) -> Tensor:
    k = c.log_uniform(12, 50)
    u, v = c.coordinates(c.uniform(0, 6), k, 0.015)
    _, edge, key = voronoi(c, u, v, 1.0)
    mineral = own(c, key) + 0.3 * c.fractal(c.uniform(0.6, 1.2))
    base, dark = c.colour(0.25, 0.25, 0.8), c.uniform(0.1, 0.6)
    other = (base + c.normal(3) * 0.04 + c.uniform(-0.3, 0.3)).clamp(0, 1)
    image = mix(base, other, (mineral * 10 - c.uniform(3, 9)).sigmoid())
    image = image * (1 - dark * (c.uniform(0, 3) - mineral * 12).sigmoid())
    image = image * (1 + c.uniform(0.02, 0.12) * grain(c) + 0.04 * smooth(c))
    return image * (0.9 + 0.1 * (edge * 4).clamp(0, 1))


@family("marble", "marble slab", "marble", "stone", "surface", edge=0.08)
def marble(c: Canvas) -> Tensor:
    _, v = c.coordinates(c.uniform(0, 6), c.log_uniform(0.3, 1.5), c.uniform(0.03, 0.12))
    clouds = c.fractal(c.uniform(1.2, 2.0))
    drawn = c.fractal(1.9) * c.uniform(0.2, 1) + profile(c, v, 1.8)
    veins = torch.exp(-drawn.abs() * c.log_uniform(4, 16)) + 0.6 * torch.exp(-clouds.abs() * c.log_uniform(8, 40))
    veins = veins * (0.5 + 0.4 * c.fractal(1.8)).clamp(0, 1) * c.uniform(0.2, 1)
    image = textured(c, clouds + 0.3 * grain(c), (0.02, 0.12), c.colour(0.3, 0.15, 0.95))
    return mix(image, c.colour(0.4), veins.clamp(0, 1) * 0.8)


@family("wood", "wooden board", "wood", "board", "surface", edge=0.08)
def wood(c: Canvas) -> Tensor:
    a = angle(c)
    u, v = c.coordinates(a, 1.0, c.uniform(0.002, 0.02))
    knots = torch.zeros_like(v)
    for _ in range(2):
        du, dv = (u - c.uniform(-0.5, 0.5)) * c.uniform(0.35, 0.8), v - c.uniform(-0.5, 0.5)
        size = c.uniform(0.015, 0.07) * c.chance(0.3)
        d = du.square() + dv.square()
        v = v - dv * size.square() / (d + 0.4 * size.square() + 1e-6)
        knots = knots + torch.exp(-d / (size.square() * 0.5 + 1e-6))
    bow = v + c.uniform(-0.5, 0.5) * u.square() * c.chance(0.4)
    rings = profile(c, bow * c.log_uniform(0.2, 1.0), c.uniform(0.3, 1.2), c.uniform(2, 12))
    pores = c.anisotropic(a, c.uniform(0.03, 0.12) * c.size, c.uniform(0.6, 1.2))
    field = rings * c.uniform(0.3, 1) + c.uniform(0.1, 0.8) * pores + 0.2 * grain(c)
    red = c.uniform(0.35, 0.9)
    green = red * c.uniform(0.62, 0.82)
    brown = torch.cat([red, green, green * c.uniform(0.45, 0.8)], 1)
    colour = mix(brown, c.colour(0.15, 0.3, 0.8), c.chance(0.15))
    return textured(c, field, (0.05, 0.2), colour) * (1 - c.uniform(0.3, 0.7) * knots.clamp(0, 1))


# -- fabrics and skins -----------------------------------------------------------------------------------------------


@family("woven cloth", "woven cloth", "fabric", "textile", "surface", edge=0.06)
def woven_cloth(c: Canvas) -> Tensor:
    k = c.log_uniform(9, 40)
    u, v = c.coordinates(angle(c), k, c.uniform(0.0, 0.012))
    v = v * c.uniform(0.6, 1.2)
    i, j = u.floor(), v.floor()
    a, b = (u - i - 0.5).abs() * 2, (v - j - 0.5).abs() * 2
    period = choose(c, 2.0, 2.0, 3.0, 4.0)
    over = (torch.remainder(i + j * choose(c, 1.0, -1.0), period) < 0.5).float()
    across, along = mix(a, b, over), mix(b, a, over)
    thread = mix(pick(c.uniform(k=TABLE), i.long() & 31), pick(c.uniform(k=TABLE), j.long() & 31), over)
    height = (1 - across.square()).clamp(min=0).sqrt() * (1 - c.uniform(0.1, 0.5) * along.square())
    fibre = c.anisotropic(c.uniform(0, math.pi), 3.0, 0.7)
    shade = 1 - c.uniform(0.1, 0.7) * (1 - height) + c.uniform(0, 0.3) * (thread - 0.5) + 0.06 * fibre
    warp_colour = c.colour(0.6, 0.15)
    colour = mix(warp_colour, mix(warp_colour, c.colour(0.6), c.uniform(0, 0.7)), over)
    return textured(c, grain(c), (0.02, 0.12), colour) * shade


@family("carpet", "carpet", "rug", "fabric", "surface", edge=0.06)
def carpet(c: Canvas) -> Tensor:
    k = c.log_uniform(12, 45)
    u, v = c.coordinates(angle(c), k, c.uniform(0.002, 0.015))
    first, _, key = voronoi(c, u, v * c.uniform(0.5, 1), c.uniform(0.2, 1))
    loops = standardize(-first + 0.5 * (own(c, key) - 0.5) * c.uniform(0, 2))
    fuzz = c.fractal(c.uniform(0.6, 1.3), c.log_uniform(15, 50))
    side, _ = relief(c, fuzz * 0.01, c.uniform(0, 6.3))
    field = mix(loops, standardize(side) * 0.7 + fuzz * 0.7, c.uniform(0, 1)) + 0.5 * grain(c)
    colour = mix(c.colour(0.5, 0.15, 0.7), c.colour(0.5), c.uniform() * c.chance(0.3) * (own(c, key) > 0.6))
    return textured(c, field, (0.05, 0.28), colour)


@family("felt", "felt", "fibre mat", "nonwoven", "fabric", "surface", edge=0.06)
def felt(c: Canvas) -> Tensor:
    field, main, spread = grain(c) * 0.5, c.uniform(0, math.pi), c.uniform(0.1, 1.6)
    for _ in range(6):
        fibres = c.anisotropic(main + spread * c.normal(), c.log_uniform(0.015, 0.08) * c.size, c.uniform(0.6, 1.1))
        field = field + fibres.clamp(min=c.uniform(-2, 0.5))
    return textured(c, standardize(field) + c.uniform(0, 0.7) * smooth(c, 1.5), (0.05, 0.2), c.colour(0.6))


@family("leather", "leather", "hide", "upholstery", "surface", edge=0.08)
def leather(c: Canvas) -> Tensor:
    k = c.log_uniform(10, 50)
    u, v = c.coordinates(c.uniform(0, 6), k, c.uniform(0.005, 0.03))
    _, edge, key = voronoi(c, u, v * c.uniform(0.6, 1), c.uniform(0.6, 1))
    cells = (edge * c.uniform(1.5, 4)).clamp(0, 1).sqrt()
    creases = 1 - torch.exp(-c.fractal(1.6, c.log_uniform(6, 25)).abs() * c.uniform(2, 6))
    height = mix(cells, creases, choose(c, 0.0, c.uniform(), 1.0)) + 0.1 * own(c, key)
    shade, gleam = lit(c, height * c.uniform(0.1, 0.5) / k, c.uniform(0, 6.3), c.uniform(0, 0.15))
    image = textured(c, c.fractal(1.0), (0.02, 0.12), c.colour(0.45, 0.08, 0.7))
    return image * shade * (1 - c.uniform(0.05, 0.5) * (1 - height)) + gleam


@family("rubber", "ribbed rubber mat", "rubber", "mat", "surface", edge=0.1)
def rubber(c: Canvas) -> Tensor:
    k = c.log_uniform(4, 24)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.004))
    ribs = 0.5 + 0.5 * torch.cos(2 * math.pi * u)
    a, b, key = lattice(u, v, choose(c, 0.0, 0.5))
    studs = (1.2 - 3 * radius(a, b)).clamp(0, 0.5)
    diamonds = (0.6 - (a.abs() * c.uniform(0.6, 1.5) + b.abs())).clamp(0, 0.3)
    height = choose(c, ribs.pow(c.log_uniform(0.3, 3)), studs, diamonds * 2)
    shade, gleam = lit(c, height / k * c.uniform(0.15, 0.6), c.uniform(0, 6.3), c.uniform(0, 0.3))
    jitter = 1 + c.uniform(0, 0.12) * (own(c, key) - 0.5) * height
    return textured(c, grain(c), (0.03, 0.15), c.colour(0.4, 0.08, 0.6)) * shade * jitter + 0.5 * gleam


@family("speckled plastic", "speckled plastic", "plastic", "panel", "surface", edge=0.15, hole=0.08)
def speckled_plastic(c: Canvas) -> Tensor:
    k = c.log_uniform(10, 45)
    u, v = c.coordinates(c.uniform(0, 6), k)
    first, _, key = voronoi(c, u, v)
    dots = c.smoothstep((first - own(c, key) * c.uniform(0.1, 0.5)) / k, 2.5) * (own(c, key) < c.uniform(0.1, 1))
    pitted = c.fractal(c.uniform(0.3, 1.2), c.log_uniform(10, 60))
    side, _ = relief(c, pitted * 0.01, c.uniform(0, 6.3))
    image = textured(c, standardize(side), (0.01, 0.12), c.colour(0.45, 0.05, 0.95))
    return mix(image, c.colour(0.5), dots * c.uniform(0.05, 0.7) * c.chance(0.7))


@family("glass", "glass pane", "glass", "transparent part", "surface")
def glass(c: Canvas) -> Tensor:
    u, v = c.coordinates(angle(c), 1.0, c.uniform(0, 0.06))
    image = choose(c, c.colour(0.2, 0.02, 0.9), ground(c)) * (1 + c.uniform(0, 0.12) * smooth(c, 2.4))
    for _ in range(3):
        t = v * c.uniform(0.7, 1.2) + u * c.uniform(-0.5, 0.5) - c.uniform(-0.5, 0.5)
        band = c.smoothstep(t.abs() - c.uniform(0.005, 0.15), c.log_uniform(1.5, 30))
        image = image + band * c.uniform(-0.12, 0.3) * c.chance(0.6)
    lens = torch.exp(-c.fractal(2.6).abs() * c.log_uniform(4, 30)) * c.uniform(0, 0.3) * c.chance(0.4)
    return image + lens + 0.01 * c.uniform() * c.white()


# -- repeated elements -----------------------------------------------------------------------------------------------


@family("tiles", "tiled wall", "tiles", "bricks", "wall", "surface")
def tiles(c: Canvas) -> Tensor:
    k = c.log_uniform(1.5, 9)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.002))
    u, v = u + c.uniform(), v + c.uniform()
    a, b, key = lattice(u / choose(c, 1.0, 1.0, 2.0, 3.0), v, choose(c, 0.0, 0.0, 0.5))
    square = torch.maximum(a.abs(), b.abs()) - 0.5
    ha, hb, hkey = hexagons(u, v)
    six = torch.maximum(ha.abs(), 0.5 * ha.abs() + 0.866 * hb.abs()) - 0.5
    hexagonal = c.chance(0.3) > 0
    d, key = torch.where(hexagonal, six, square) + c.uniform(0.015, 0.07), torch.where(hexagonal, hkey, key)
    tile = c.smoothstep(d / k + 0.001 * c.fractal(1.0), 2.5)
    shade, gleam = lit(c, bevel(d, c.uniform(0.03, 0.25)) / k * c.uniform(0, 0.5), c.uniform(0, 6.3), c.uniform(0, 0.3))
    body = textured(c, mix(grain(c), c.fractal(1.6), c.uniform()), (0.01, 0.2), c.colour(0.7, 0.15, 0.95))
    body = body * shade * (1 + c.uniform(0, 0.4) * (own(c, key) - 0.5)) + gleam
    return mix(textured(c, grain(c), (0.03, 0.15), c.colour(0.2, 0.1, 0.9)), body, tile)


@family("wire grid", "wire mesh", "metal grid", "grid", "mesh")
def wire_grid(c: Canvas) -> Tensor:
    k = c.log_uniform(4, 22)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.002) * c.chance(0.5))
    u = u + v * c.uniform(-0.6, 0.6) * c.chance(0.3)
    a, b, _ = lattice(u, v)
    half = c.uniform(0.06, 0.22)
    x, y = a.abs() / half, b.abs() / half
    weave = 0.3 * torch.cos(math.pi * (u.floor() + v.floor())) * c.chance(0.6)
    wave_x, wave_y = weave * torch.cos(math.pi * b), -weave * torch.cos(math.pi * a)
    lift_x = (1 - x.square()).clamp(min=0).sqrt() + wave_x
    lift_y = (1 - y.square()).clamp(min=0).sqrt() + wave_y
    on_x, on_y = c.smoothstep((x - 1) * half / k, 2), c.smoothstep((y - 1) * half / k, 2)
    top = torch.where((on_x > 0.5) & ((lift_x > lift_y) | (on_y < 0.5)), lift_x, lift_y)
    wires = torch.maximum(on_x, on_y)
    under = ground(c)
    shade, gleam = lit(c, top * wires * half / k * c.uniform(0.2, 0.8), c.uniform(0, 6.3), c.uniform(0, 0.5))
    wire = textured(c, grain(c), (0.02, 0.15), apart(c, under, metal(c, 0.1, 0.9))) * shade + gleam
    return mix(under, wire, wires)


@family("perforated plate", "perforated plate", "perforated metal", "plate", "metal", "surface", edge=0.1)
def perforated_plate(c: Canvas) -> Tensor:
    k = c.log_uniform(3, 16)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.003))
    a, b, _ = lattice(u, v, choose(c, 0.0, 0.5))
    ha, hb, _ = hexagons(u, v)
    six = c.chance(0.5) > 0
    a, b = torch.where(six, ha, a), torch.where(six, hb, b)
    size = c.uniform(0.15, 0.38)
    d = choose(c, radius(a, b) - size, radius(a, b) - size, box(a, b, size, size, 0.06), box(a, b, 0.38, 0.14, 0.14))
    hole = c.smoothstep(d / k, 2.5)
    shade, gleam = lit(c, bevel(-d, 0.12) / k * c.uniform(0, 0.6), c.uniform(0, 6.3), 0.2)
    body = textured(c, mix(grain(c), c.anisotropic(angle(c), 6.0, 0.7), c.uniform()), (0.02, 0.15), c.colour(0.2, 0.35))
    inner = choose(c, 0.04, c.uniform(0.02, 0.3), c.uniform(0.8, 1)) * (1 + 0.2 * c.fractal(2.0))
    return mix(body * shade + gleam, inner, hole)


@family("solar cell", "solar cell", "photovoltaic cell", "silicon wafer", "cell", "surface")
def solar_cell(c: Canvas) -> Tensor:
    a = choose(c, 0.0, math.pi / 2) + 0.01 * c.normal()
    zoom = choose(c, 1.0, c.uniform(0.3, 1.0))
    u, v = c.coordinates(a, 1.0)
    p, q = (u * zoom + 0.5), (v * zoom + c.uniform(0.3, 0.7))
    k = c.log_uniform(5, 25)
    gu, gv = c.coordinates(c.uniform(0, 6), k, c.uniform(0.0, 0.04))
    _, _, key = voronoi(c, gu * c.uniform(0.4, 1), gv, 1.0)
    crystal = (own(c, key) - 0.5) * c.uniform(0.2, 1.6) * c.chance(0.55)
    dark = torch.exp(-c.fractal(1.6).abs() * 3) * c.uniform(0, 1)
    field = crystal - 0.6 * dark * c.chance(0.5) + 0.12 * grain(c) + c.uniform(0, 0.5) * c.fractal(2.0)
    blue = torch.cat([c.uniform(0.03, 0.2), c.uniform(0.08, 0.3), c.uniform(0.2, 0.6)], 1)
    colour = mix(c.uniform(0.1, 0.65).expand(-1, 3, -1, -1), blue, c.chance(0.45))
    image = textured(c, field, (0.15, 0.5), colour)
    sign, lines = choose(c, c.uniform(-0.8, -0.3), c.uniform(0.4, 2)), c.log_uniform(15, 60)
    finger = c.smoothstep(fold(q * lines) / lines / 2 - 0.0025, 2.5) * c.uniform(0, 0.5)
    bars = choose(c, 2.0, 3.0, 3.0, 4.0, 5.0)
    bar = c.smoothstep(fold(p * bars) / bars / 2 - c.uniform(0.005, 0.018), 2)
    image = image * (1 + sign * finger) + 0.1 * (sign > 0) * finger
    image = mix(image, (image.mean((1, 2, 3), keepdim=True) * (1 + sign)).clamp(0, 0.9) * (1 + 0.05 * grain(c)), bar)
    corner = c.uniform(0.0, 0.12) * c.chance(0.4)
    d = torch.maximum(box(p - 0.5, q - 0.5, 0.49, 0.49), (p - 0.5).abs() + (q - 0.5).abs() - 0.98 + corner)
    return mix(choose(c, 0.03, 0.05, 0.9) + 0.01 * c.white(), image, c.smoothstep(d, 2))


@family("circuit board", "printed circuit board", "circuit board", "electronics")
def circuit_board(c: Canvas) -> Tensor:
    k = c.log_uniform(5, 16)
    u, v = c.coordinates(choose(c, 0.0, math.pi / 2) + 0.05 * c.normal() * c.chance(0.5), k)
    i, j = u.floor(), v.floor()
    a, b = u - i - 0.5, v - j - 0.5
    density, table_x, table_y = c.uniform(0.35, 0.75), c.uniform(k=TABLE * TABLE), c.uniform(k=TABLE * TABLE)
    x_edge = torch.where(a > 0, pick(table_x, cell_key(i + 1, j)), pick(table_x, cell_key(i, j))) < density
    y_edge = torch.where(b > 0, pick(table_y, cell_key(i, j + 1)), pick(table_y, cell_key(i, j))) < density
    trace = torch.minimum(torch.where(x_edge, b.abs(), 1.0), torch.where(y_edge, a.abs(), 1.0)) - c.uniform(0.06, 0.2)
    key = cell_key(i, j)
    pad = radius(a, b) - c.uniform(0.2, 0.36)
    pad = torch.where(own(c, key) < c.uniform(0.1, 0.6), pad, 1.0)
    board = choose(c, 0.0, 1.0, 2.0)
    green = torch.cat([c.uniform(0.0, 0.15), c.uniform(0.15, 0.45), c.uniform(0.08, 0.25)], 1)
    colour = torch.where(board < 1.5, green, c.colour(0.5, 0.06, 0.5))
    image = textured(c, c.fractal(1.0), (0.01, 0.08), colour)
    image = mix(image, image * c.uniform(1.15, 1.9) + 0.03, c.smoothstep(trace / k, 2))
    shade, gleam = lit(c, bevel(pad, 0.15) / k * 0.6, c.uniform(0, 6.3), 0.5)
    tin = metal(c, 0.5, 0.9) * shade + gleam
    image = mix(image, tin, c.smoothstep(pad / k, 2))
    image = mix(image, 0.04, c.smoothstep((radius(a, b) - 0.11) / k, 2) * (pad < 0) * c.chance(0.7))
    s = c.uniform(1.4, 3.0)
    pa, pb, pkey = lattice(u / s + c.uniform(), v / s + c.uniform())
    there = own(c, pkey) < c.uniform(0, 0.7)
    wide = c.uniform(0.15, 0.42)
    part = torch.where(there, box(pa, pb, wide, c.uniform(0.15, 0.4), 0.03), 1.0) * s / k
    legs = torch.where(there, box(pa, pb, wide + 0.07, 0.36) * s / k, 1.0)
    comb = c.smoothstep(legs, 2) * c.smoothstep((fold(pb * c.uniform(4, 9)) - 0.5) * 0.12 * s / k, 2)
    image = mix(image, 0.75 * (1 + 0.2 * c.fractal(1.0)), comb)
    ink = glyphs(c, pa * 8, pb * 8, 0.3)
    chip = mix(
        c.colour(0.5, 0.04, 0.5) * (1 + 0.06 * grain(c)), c.uniform(0.5, 0.9), c.smoothstep(ink * s / k / 8) * 0.7
    )
    return mix(image, chip, c.smoothstep(part, 2))


@family("printed label", "printed label", "label", "printed text", "print")
def printed_label(c: Canvas) -> Tensor:
    u, v = c.coordinates(choose(c, 0.0, 0.1 * c.normal(), angle(c)), 1.0, c.uniform(0, 0.004))
    paper_colour, ink_colour = c.colour(0.4, 0.5, 0.98), c.colour(0.6, 0.02, 0.3)
    swap = c.chance(0.3)
    image = textured(c, c.fractal(c.uniform(0.5, 1.5)), (0.01, 0.06), mix(paper_colour, ink_colour, swap))
    ink = mix(ink_colour, paper_colour, swap) * (1 + 0.05 * grain(c))
    bar_u = profile(c, u * c.uniform(0.4, 1), 0.3)
    top, height = c.uniform(-0.5, 0.1), c.uniform(0.2, 0.5)
    block = c.smoothstep(box(u, v - top - height / 2, c.uniform(0.2, 0.5), height / 2, 0.01), 2)
    mark = c.smoothstep((radius(u - c.uniform(-0.4, 0.4), v - top) - c.uniform(0.08, 0.2)).abs() - 0.02, 2)
    fill = choose(c, c.smoothstep(-bar_u * 0.05), 0.4, mark, mark)
    image = mix(image, mix(ink, c.colour(0.9), c.chance(0.4)), block * fill * c.chance(0.6))
    for size in (c.log_uniform(6, 16), c.log_uniform(12, 34)):
        shift = c.uniform(-0.3, 0.3)
        letters = c.smoothstep(glyphs(c, u * size, v * size, 0.18) / size, 1.5)
        rows = (pick(c.uniform(k=TABLE), (v * size / 1.6).floor().long() & 31) < 0.6).float()
        margin = c.smoothstep(box(u - shift, v, c.uniform(0.2, 0.6), c.uniform(0.1, 0.5)), 1)
        image = mix(image, ink, letters * rows * margin * (1 - block))
    frame = c.smoothstep(box(u, v, c.uniform(0.35, 0.5), c.uniform(0.3, 0.5), 0.03).abs() - 0.005, 1.5)
    return mix(image, ink, frame * c.chance(0.3))


# -- objects ---------------------------------------------------------------------------------------------------------


@family("washer", "metal washer", "ring", "washer", "part", "object")
def washer(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c)
    r, hole = radius(f.u, f.v), c.uniform(0.25, 0.85)
    d = torch.maximum(r - 1, hole - r)
    lathe = profile(c, r * c.uniform(0.5, 2), 0.3) + c.uniform(0, 1) * grain(c)
    fan = profile(c, turn(f.u, f.v) + c.uniform(), 2.0, 1.0)
    shade, gleam = f.lit(bevel(d, (1 - hole) * c.uniform(0.1, 0.9)), c.uniform(0, 0.6))
    base = apart(c, under, choose(c, metal(c), metal(c), c.colour(0.6, 0.04, 0.7)))
    part = textured(c, lathe, (0.01, 0.1), base) * (1 + c.uniform(0, 0.25) * fan) * shade + gleam
    return put(c, under, part, f.inside(d))


@family("nut", "hexagon nut", "metal nut", "nut", "part", "object")
def nut(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.35, 0.95)
    r, u, v = radius(f.u, f.v), f.u.abs(), f.v.abs()
    d = torch.maximum(v, 0.866 * u + 0.5 * v) - 0.866
    hole = c.uniform(0.35, 0.55)
    shade, gleam = f.lit(bevel(torch.maximum(d, r - 0.95), c.uniform(0.05, 0.2)) * 0.6, c.uniform(0.1, 0.6))
    rim = f.inside((r - hole - 0.06).abs() - 0.05, 3) * c.uniform(-0.3, 0.4)
    base = apart(c, under, metal(c, 0.2, 0.8))
    part = textured(c, grain(c) + profile(c, f.v * 0.3, 0.5), (0.02, 0.12), base) * shade * (1 + rim) + gleam
    thread = 0.08 + 0.15 * fold(r * 9 + turn(f.u, f.v)) * c.uniform()
    inside = f.inside(r - hole)
    part = mix(part, mix(thread, under, f.inside(r - hole + 0.1) * c.chance(0.6)), inside)
    return put(c, under, part, f.inside(d) * (1 - inside * 0.999))


@family("capsule", "drug capsule", "capsule", "pill", "object")
def capsule(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.5, 1.0, 0.3, 0.4)
    half = c.uniform(0.24, 0.42)
    d = box(f.u, f.v, 1.0, half, half)
    shade, gleam = f.lit(bevel(d, half) * c.uniform(0.3, 0.8), c.uniform(0.2, 0.9))
    seam = c.uniform(-0.25, 0.25)
    cap = f.inside(f.u - seam)
    colour = mix(apart(c, under, c.colour(0.7, 0.2, 0.95)), c.colour(0.7, 0.1, 0.95), cap)
    part = textured(c, grain(c), (0.005, 0.06), colour) * shade + 0.6 * gleam
    part = part * (1 - c.uniform(0, 0.4) * f.inside((f.u - seam).abs() - 0.012))
    letter = half * c.uniform(0.3, 0.7)
    ink = f.inside(glyphs(c, f.u / letter + 0.5, f.v / letter + 0.8, 0.1) * letter)
    ink = ink * f.inside(box(f.u - c.uniform(-0.4, 0.4), f.v, c.uniform(0.2, 0.5), half * 0.45)) * c.chance(0.5)
    return put(c, under, mix(part, c.colour(0.5, 0.02, 0.9), ink * 0.8), f.inside(d))


@family("pill", "pill", "tablet", "drug", "object")
def pill(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.4, 0.95, 0.3, 0.7)
    aspect = choose(c, 1.0, c.uniform(1, 2.2))
    d = (f.u.abs().pow(2.2) + (f.v.abs() * aspect).pow(2.2) + 1e-6).pow(1 / 2.2) - 1
    d = d / aspect.sqrt()
    letter = c.uniform(0.16, 0.35)
    stamp = glyphs(c, f.u / letter + 0.5, f.v / letter + 0.8, 0.1) * letter
    stamp = torch.maximum(stamp, box(f.u, f.v, letter * choose(c, 0.45, 1.45), letter * 0.79))
    score = torch.where(c.chance(0.3) > 0, f.u.abs() - 0.035, torch.where(c.chance(0.6) > 0, stamp, 1.0))
    pressed = f.inside(score, 3)
    height = bevel(d, c.uniform(0.15, 0.7)) * c.uniform(0.3, 0.9) - 0.05 * pressed
    shade, gleam = f.lit(height, c.uniform(0, 0.5))
    k = c.log_uniform(15, 50)
    first, _, key = voronoi(c, c.x * k, c.y * k)
    dots = c.smoothstep((first - 0.35 * own(c, key)) / k, 2.5) * (own(c, key) < 0.4) * c.chance(0.35)
    part = textured(c, grain(c), (0.01, 0.08), apart(c, under, c.colour(0.7, 0.35, 0.98)))
    part = mix(part, c.colour(0.9), dots * c.uniform(0.2, 0.7)) * shade * (1 - 0.15 * pressed) + gleam
    return put(c, under, part, f.inside(d))


@family("screw", "metal screw", "screw", "bolt", "part", "object")
def screw(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.6, 1.0, 0.12, 0.35)
    u, v = f.u, f.v
    half, turns = c.uniform(0.09, 0.18), c.uniform(8, 20)
    neck = c.uniform(-0.7, 0.1)
    threaded = f.inside(neck - u, 3)
    phase = u * turns + v * c.uniform(0.5, 1.5)
    tip = ((1 - u) * c.uniform(1.5, 6)).clamp(0.05, 1)
    width = half * tip * (1 - threaded * c.uniform(0.1, 0.3) * fold(u * turns + 0.5 * (v > 0)))
    shaft = torch.maximum(v.abs() - width, torch.maximum(-0.8 - u, u - 1))
    head_half, head_end = half * c.uniform(1.6, 2.3), -1 + c.uniform(0.12, 0.3)
    cone = mix(head_half, half + (head_half - half) * ((head_end - u) / (head_end + 1)).clamp(0, 1), c.chance(0.5))
    head = torch.maximum(v.abs() - cone, torch.maximum(-1 - u, u - head_end))
    d = torch.minimum(shaft, head)
    side = torch.where(head < shaft, v / cone, v / half)
    phi = side * 1.4 + c.uniform(-0.8, 0.8)
    round_ = 0.35 + 0.65 * torch.cos(phi) + c.uniform(0, 0.5) * torch.exp(-(phi - 0.3).square() * 20)
    ridges = 1 + threaded * (head > 0) * c.uniform(0.2, 0.6) * torch.cos(2 * math.pi * phase)
    base = apart(c, under, metal(c, 0.2, 0.8))
    part = textured(c, grain(c), (0.02, 0.12), base) * round_ * ridges
    return put(c, under, part, f.inside(d))


@family("bottle", "bottle mouth", "bottle rim", "bottle", "glass", "object")
def bottle(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.7, 1.05, 0.0)
    r, t = radius(f.u, f.v), turn(f.u, f.v)
    rings = profile(c, r * 0.5, c.uniform(1.2, 2.2), 3.0)
    around = profile(c, t + c.uniform(), 1.6, 1.0)
    glints = (profile(c, t + 0.4 * r, 1.2, 4.0) - 1).clamp(min=0) * f.inside((r - c.uniform(0.5, 0.95)).abs() - 0.05, 4)
    lip, bore = c.uniform(0.75, 0.95), c.uniform(0.3, 0.65)
    wall = c.colour(0.8, 0.05, 0.6) * (1 + c.uniform(0.2, 0.7) * rings + c.uniform(0, 0.3) * around) + 0.5 * glints
    wall = wall + c.uniform(0.1, 0.5) * f.inside((r - lip).abs() - c.uniform(0.01, 0.05), 3)
    inner = choose(c, 0.03, c.uniform(0.02, 0.3), c.uniform(0.5, 0.95)) * (1 + 0.1 * c.fractal(2.0) + 0.3 * r)
    part = mix(wall, inner, f.inside(r - bore, 3)) * (1 + 0.02 * grain(c))
    return put(c, under, part, f.inside(r - 1))


@family("cable", "cable cross section", "cable", "wire bundle", "object")
def cable(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.75, 1.05, 0.0)
    r = radius(f.u, f.v)
    sheath = c.colour(0.4, 0.1, 0.9)
    part = textured(c, grain(c), (0.02, 0.1), sheath) * (1 + c.uniform(0, 0.4) * f.inside((r - 0.95).abs() - 0.03, 4))
    count = choose(c, 2.0, 3.0, 3.0, 4.0, 7.0)
    arm = 0.46 + 0.06 * (count > 3)
    size = torch.minimum(c.uniform(0.36, 0.42), 0.94 * arm * torch.sin(math.pi / count))
    t = turn(f.u, f.v) * count
    which = torch.remainder(t.floor(), count).long()
    phi = (t - t.floor() - 0.5) / count * 2 * math.pi
    a, b = r * phi.cos() - arm, r * phi.sin()
    colours = torch.cat([c.colour(1.0, 0.1, 0.9) for _ in range(7)], 1)
    skin_ = torch.cat([pick(colours[:, i::3], which) for i in range(3)], 1)
    d = radius(a, b) - size
    part = mix(part, skin_ * (1 + 0.04 * grain(c)), f.inside(d))
    part = part * (1 - 0.5 * f.inside(d.abs() - 0.015, 4))
    k = c.uniform(6, 16)
    ha, hb, key = hexagons(f.u * k + 0.2 * c.fractal(2.2), f.v * k + 0.2 * c.fractal(2.2))
    strand = (1.15 - radius(ha, hb) * 1.9).clamp(0, 1) * (0.5 + own(c, key))
    copper = torch.tensor([0.85, 0.55, 0.35], device=c.device).view(1, 3, 1, 1)
    core = mix(copper, c.uniform(0.5, 0.9).expand(-1, 3, -1, -1), c.chance(0.3)) * (0.1 + strand)
    part = mix(part, core, f.inside(d + size * c.uniform(0.25, 0.5) + 0.02 * c.fractal(2.0), 3))
    return put(c, under, part, f.inside(r - 1 + 0.01 * c.fractal(2.2)))


@family("zipper", "zipper", "zip fastener", "fastener", "object")
def zipper(c: Canvas) -> tuple[Tensor, Tensor]:
    k = c.log_uniform(7, 22)
    u, v = c.coordinates(choose(c, 0.0, math.pi / 2, angle(c)), 1.0, c.uniform(0, 0.006))
    v = v - c.uniform(-0.15, 0.15)
    half, w = c.uniform(0.07, 0.16), 1.5 / k
    side = torch.sign(v + 1e-6)
    p = u * k + 0.25 * side
    a = (p - p.floor() - 0.5) / k
    tooth = box(a, v.abs() - half * 0.42, c.uniform(0.2, 0.3) / k, half * 0.58, w * 0.1)
    weave = torch.cos(u * c.log_uniform(150, 400)) * torch.cos(v * c.log_uniform(150, 400))
    tape = textured(c, weave + 0.5 * grain(c), (0.05, 0.2), c.colour(0.6, 0.05, 0.7))
    ridge = 1 + c.uniform(-0.4, 0.4) * c.smoothstep((v.abs() - half * c.uniform(1.2, 1.9)).abs() - 0.012, 4)
    shade, gleam = lit(c, bevel(tooth, 0.25 / k) * 0.9, c.uniform(0, 6.3), c.uniform(0.1, 0.6))
    colour = choose(c, metal(c), c.colour(0.5, 0.05, 0.9))
    jitter = 1 + 0.15 * (own(c, cell_key(p.floor(), side)) - 0.5)
    part = mix(
        tape * ridge * (1 - 0.5 * c.smoothstep(tooth, 8)), colour * shade * jitter + gleam, c.smoothstep(tooth, 2)
    )
    mask = c.smoothstep(v.abs() - half * c.uniform(2.2, 4.5), 2)
    return put(c, ground(c), part, mask)


@family("transistor", "transistor", "electronic component", "component", "part", "object")
def transistor(c: Canvas) -> tuple[Tensor, Tensor]:
    k = c.uniform(6, 14)
    a, b, _ = lattice(c.x * k, c.y * k)
    holes = c.smoothstep((radius(a, b) - 0.2) / k, 2) * c.chance(0.5)
    under = ground(c) * (1 - 0.7 * holes)
    f = place(c, 0.6, 1.0, 0.1, 0.6)
    w, top, bottom = c.uniform(0.35, 0.5), c.uniform(-0.55, -0.3), c.uniform(0.05, 0.25)
    mid = (top + bottom) / 2
    body = box(f.u, f.v - mid, w, (bottom - top) / 2, 0.03)
    tab = torch.maximum(box(f.u, f.v - top, w * 0.98, 0.35, 0.08), 0.13 - radius(f.u, f.v - top + 0.2))
    tab = torch.where(c.chance(0.6) > 0, tab, 1.0)
    legs = choose(c, 2.0, 3.0, 3.0, 4.0)
    pitch = w * 1.7 / legs
    x = f.u + pitch * 0.5 * (torch.remainder(legs, 2) < 0.5)
    x = x - (x / pitch).round().clamp(-1, 1) * pitch
    leg = torch.maximum(box(x, f.v - 0.6, pitch * c.uniform(0.15, 0.28), 0.4), f.u.abs() - w)
    tin = metal(c, 0.5, 0.9) * (1 + 0.06 * grain(c))
    glow, gleam = f.lit(bevel(torch.minimum(leg, tab), 0.06), 0.5)
    shade, soft = f.lit(bevel(body, 0.12) * 0.6, 0.25)
    letter = c.uniform(0.1, 0.18)
    ink = f.inside(glyphs(c, f.u / letter, (f.v - mid) / letter + 0.8, 0.15) * letter, 1.5)
    ink = ink * f.inside(box(f.u, f.v - mid, w * 0.8, (bottom - top) * 0.33))
    plastic = textured(c, grain(c), (0.03, 0.12), c.colour(0.15, 0.05, 0.25)) * shade + soft
    part = mix(tin * glow + gleam, mix(plastic, 0.7, ink * 0.6), f.inside(body))
    return put(c, under, part, f.inside(torch.minimum(body, torch.minimum(tab, leg))))


@family("food", "piece of food", "food", "snack", "object")
def food(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.45, 1.0, 0.35, 0.8)
    r, t = radius(f.u, f.v * c.uniform(1, 1.5)), turn(f.u, f.v)
    d = r - 0.85 - c.uniform(0.01, 0.07) * profile(c, t + own(c, f.key), 1.6, 1.5).clamp(-2, 2)
    wavy = c.fractal(c.uniform(1.5, 2.4), c.log_uniform(2, 20)) * c.log_uniform(0.0006, 0.012)
    ridges = torch.cos(f.u * c.uniform(15, 40)) * 0.02 * c.chance(0.25)
    shade, gleam = f.lit(bevel(d, c.uniform(0.1, 0.85)) * c.uniform(0.3, 0.9) + wavy / f.r + ridges, c.uniform(0, 0.4))
    stripes = profile(c, t + 0.1 * c.fractal(2.0), 0.8, 4.0) * c.chance(0.3)
    field = c.fractal(c.uniform(0.5, 1.5)) + stripes
    warm = torch.cat([c.uniform(0.5, 0.95), c.uniform(0.3, 0.75), c.uniform(0.1, 0.45)], 1)
    colour = apart(c, under, mix(warm, c.colour(0.6, 0.2), c.chance(0.25)))
    part = textured(c, field, (0.03, 0.2), colour) * shade + gleam
    spot = f.inside(radius(f.u - c.uniform(-0.3, 0.3), f.v - c.uniform(-0.3, 0.3)) - c.uniform(0.04, 0.3), 8)
    return put(c, under, mix(part, part * c.uniform(0.2, 1.3), spot * c.chance(0.35)), f.inside(d))


@family("brush", "brush head", "bristles", "brush", "object")
def brush(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.7, 1.1, 0.0, 0.5)
    half = c.uniform(0.3, 0.6)
    d = box(f.u, f.v, 1.0, half, half * c.uniform(0.3, 1))
    k = c.uniform(2.5, 6)
    a, b, key = lattice(f.u * k, f.v * k, choose(c, 0.0, 0.5))
    a, b = a + (own(c, key) - 0.5) * 0.15, b + (own(c, key) - 0.5) * 0.15
    tuft = f.inside((radius(a, b) - c.uniform(0.33, 0.42)) / k, 4) * f.inside(d + 0.08, 2)
    m = c.log_uniform(25, 60)
    first, _, hair = voronoi(c, c.x * m, c.y * m)
    tips = (1 - first * 1.3).clamp(0, 1) * (0.6 + 0.5 * own(c, hair))
    pair = mix(c.colour(1.0, 0.4, 0.95), c.colour(1.0, 0.4, 0.95), (own(c, key) > 0.5).float())
    shade, gleam = f.lit(bevel(d, 0.15), 0.3)
    body = textured(c, grain(c), (0.01, 0.06), apart(c, under, c.colour(0.8, 0.2, 0.95))) * shade + gleam
    return put(c, under, mix(body * (1 - 0.4 * tuft), pair * (0.3 + 0.9 * tips), tuft), f.inside(d))


# -- medical pictures ------------------------------------------------------------------------------------------------


@family("tissue", "stained tissue section", "tissue", "histology section", domain="medical")
def tissue(c: Canvas) -> Tensor:
    k = c.log_uniform(8, 32)
    u, v = c.coordinates(c.uniform(0, 6), k, c.uniform(0.01, 0.04))
    first, edge, key = voronoi(c, u, v, 1.0)
    pink = torch.cat([c.uniform(0.75, 0.95), c.uniform(0.45, 0.75), c.uniform(0.65, 0.88)], 1)
    purple = torch.cat([c.uniform(0.3, 0.55), c.uniform(0.15, 0.4), c.uniform(0.45, 0.7)], 1)
    crowd = own(c, key) + c.uniform(0, 0.4) * c.fractal(2.0) < c.uniform(0.3, 1)
    nuclei = c.smoothstep((first - 0.15 - 0.3 * own(c, key)) / k + 0.004 * c.fractal(1.5), 4) * crowd
    lumen = (c.fractal(c.uniform(1.6, 2.2)) * 6 - c.uniform(5, 14)).sigmoid()
    fibres = c.anisotropic(c.uniform(0, 3), 0.05 * c.size, 1.5) * c.uniform(0, 1)
    image = textured(c, c.fractal(1.2) + fibres, (0.04, 0.16), pink) * (1 - 0.2 * torch.exp(-edge * 8) * c.uniform())
    image = mix(image, purple * (1 + 0.15 * grain(c)), nuclei * c.uniform(0.5, 0.95))
    return mix(image, 0.93, lumen)


@family("ultrasound", "ultrasound scan", "ultrasound picture", "sonogram", domain="medical")
def ultrasound(c: Canvas) -> tuple[Tensor, Tensor]:
    v = c.y + c.uniform(0.005, 0.05) * c.fractal(2.3)
    layers = profile(c, v * c.uniform(0.5, 1.2), c.uniform(0.7, 1.6), 2.0)
    tissue_ = layers + c.uniform(0.2, 1) * c.fractal(1.7)
    speckle = c.anisotropic(c.uniform() * 0, c.uniform(1.2, 3), c.uniform(0.7, 1.4), 2).square().sum(1, True).sqrt()
    depth = torch.exp(-c.y * c.uniform(0, 1.5))
    shadows = 1 - 0.5 * c.chance(0.5) * c.smoothstep(profile(c, c.x + 0.1, 1.6) * 0.05, 20)
    cyst = c.smoothstep(c.fractal(2.6) * 0.05 + c.uniform(0.06, 0.15), 4) * c.chance(0.6)
    echo = (
        torch.exp(tissue_ * c.uniform(0.3, 0.8))
        * mix(1.0, speckle, c.uniform(0.3, 1))
        * depth
        * shadows
        * (1 - 0.9 * cyst)
    )
    image = (echo + 1e-3).pow(c.uniform(0.4, 0.8)) * c.uniform(0.2, 0.45)
    r, t = radius(c.x - 0.5, c.y + 0.15), torch.atan2(c.x - 0.5, c.y + 0.15)
    sector = c.smoothstep(torch.maximum(t.abs() - c.uniform(0.5, 0.8), torch.maximum(r - 1.1, 0.22 - r)))
    mask = torch.where(c.chance(0.4) > 0, sector, 1.0)
    return image * mask, mask


@family("brain scan", "brain scan", "brain", "head scan", "head", domain="medical")
def brain_scan(c: Canvas) -> tuple[Tensor, Tensor]:
    turned, s, size = 0.1 * c.normal(), c.uniform(1.05, 1.35), c.uniform(0.37, 0.5)
    x, y = (c.x - c.uniform(0.47, 0.53)) / size, (c.y - c.uniform(0.48, 0.52)) / size
    f = Frame(c, (x * turned.cos() + y * turned.sin()) * s, y * turned.cos() - x * turned.sin(), size, c.x, turned)
    u, v = f.u, f.v
    r = radius(u, v) + 0.012 * smooth(c, 2.2)
    folds = warp(c.fractal(4.0, c.uniform(7, 16)), u.abs() + 0.02 * smooth(c), v + 0.02 * smooth(c)).abs()
    gap = c.uniform(0.8, 0.87)
    depth = ((r - c.uniform(0.15, 0.45)) / 0.5).clamp(0, 1)
    cortex = ((depth * 2.2 - folds * 2.2 - 0.3) * 4).sigmoid()
    grey, white, fluid = c.uniform(0.25, 0.6), c.uniform(0.3, 0.75), choose(c, 0.05, c.uniform(0.05, 0.2), 0.9)
    image = mix(white, grey, cortex) * (1 + 0.05 * c.fractal(1.2))
    sulci = ((depth * c.uniform(1.0, 1.7) - folds * 5 - 0.8) * 3).sigmoid()
    gap_line = f.inside(u.abs() - 0.012, 3) * (v.abs() - 0.35).clamp(0, 0.2) * 5
    half = c.uniform(0.05, 0.12)
    horn = radius((u.abs() - half * 1.2 - 0.35 * (v + 0.05).square()) / half, (v + 0.05) / c.uniform(0.2, 0.4)) - 1
    horns = f.inside(horn * 0.1 + 0.01 * smooth(c, 1.5), 3) * c.chance(0.8)
    image = mix(image, fluid, torch.maximum(torch.maximum(sulci, gap_line) * c.uniform(0.3, 1), horns))
    image = mix(image, c.uniform(0.02, 0.15), f.inside(gap - r, 3))
    image = mix(image, c.uniform(0.05, 1.0), f.inside((r - 0.94).abs() - c.uniform(0.012, 0.05), 3))
    return image * f.inside(r - 1) + 0.015, f.inside(r - gap)


@family("x-ray", "x-ray picture", "radiograph", "chest x-ray", domain="medical")
def x_ray(c: Canvas) -> Tensor:
    u, v = (c.x - 0.5 - 0.03 * c.normal()) * 2, (c.y - 0.5 - 0.03 * c.normal()) * 2
    wide = c.uniform(0.28, 0.36)
    lung = radius((u.abs() - c.uniform(0.4, 0.46)) / wide, (v + 0.1 - 0.3 * (u.abs() - 0.4)) / c.uniform(0.6, 0.8)) - 1
    lung = lung + 0.06 * c.fractal(2.3)
    field = 0.62 - c.uniform(0.25, 0.45) * c.smoothstep(lung * 0.15, 12) + 0.15 * torch.exp(-(u / 0.1).square())
    arch = v * c.uniform(2.5, 4) + c.uniform(1.0, 2.2) * (u.abs() - 0.2).square() * -3 + c.uniform(0.3, 1) * u.abs()
    ribs = c.smoothstep((fold(arch) - c.uniform(0.2, 0.4)) * 0.08, 5) * c.smoothstep((u.abs() - 0.85) * 0.5, 15)
    field = field + c.uniform(0.04, 0.12) * ribs * (v < 0.75)
    heart = radius((u - 0.12) / c.uniform(0.25, 0.38), (v - 0.3) / c.uniform(0.3, 0.42)) - 1
    field = field + c.uniform(0.1, 0.25) * c.smoothstep(heart * 0.15, 14)
    vessels = c.fractal(c.uniform(1.2, 1.6)) * 0.03
    field = field - 0.5 * c.smoothstep((1 - u.abs() - 0.1 * v) * 0.3, 12) + vessels + 0.01 * c.white()
    return field * c.uniform(0.8, 1.2)


@family("retina", "retina photograph", "fundus", "eye", domain="medical")
def retina(c: Canvas) -> tuple[Tensor, Tensor]:
    r = radius(c.x - 0.5, c.y - 0.5)
    mask = torch.where(c.chance(0.7) > 0, c.smoothstep(r - c.uniform(0.44, 0.52), 2), 1.0)
    base = torch.cat([c.uniform(0.6, 0.85), c.uniform(0.25, 0.45), c.uniform(0.05, 0.22)], 1)
    image = textured(c, c.fractal(c.uniform(1.0, 1.8)), (0.03, 0.12), base) * (1.15 - r)
    px, py = c.uniform(0.2, 0.8), c.uniform(0.42, 0.58)
    disc = radius(c.x - px, c.y - py) - c.uniform(0.05, 0.09)
    vessels = torch.zeros_like(c.x)
    for i in range(6):
        heading = math.pi * (i + 0.5) / 3 + 0.3 * c.normal()
        path = c.walk(4, c.uniform(0.35, 0.9), 0.35, torch.cat([px, py], 1), heading)
        distance, along = c.polyline(path)
        line = c.smoothstep(distance + 0.003 * c.fractal(2.0) - 0.011 * (1.1 - along), 3)
        vessels = torch.maximum(vessels, line * c.uniform(0.3, 0.8))
    macula = torch.exp(-((c.x - 1 + px).square() + (c.y - py).square()) * c.uniform(60, 200))
    image = image * (1 - c.uniform(0.1, 0.4) * macula)
    pale = torch.tensor([0.98, 0.85, 0.55], device=c.device).view(1, 3, 1, 1)
    image = mix(image, pale, c.smoothstep(disc, 6) * c.uniform(0.5, 0.95))
    return mix(image, base * 0.45, vessels) * mask, mask


@family("mucosa", "endoscopy picture", "mucosa", "bowel wall", domain="medical")
def mucosa(c: Canvas) -> Tensor:
    u, v = c.coordinates(c.uniform(0, 6), 1.0, c.uniform(0.03, 0.1), c.uniform(0.2, 0.8), c.uniform(0.2, 0.8))
    rings = (profile(c, radius(u, v) * c.uniform(0.4, 1.0), 2.4, 1.0) * c.uniform(0, 1) + c.fractal(2.4)) * 0.03
    shade, gleam = lit(c, rings, c.uniform(0, 6.3), c.uniform(0.3, 1))
    red = c.uniform(0.6, 0.95)
    green = red * c.uniform(0.4, 0.65)
    base = torch.cat([red, green, green * c.uniform(0.65, 1.05)], 1)
    veins = torch.exp(-c.fractal(1.7, 3.0).abs() * c.uniform(8, 25)) * c.uniform(0, 0.35)
    lumen = torch.exp(-(u.square() + v.square()) * c.log_uniform(8, 60)) * c.uniform(0, 0.9)
    image = textured(c, c.fractal(1.3), (0.02, 0.1), base) * (0.4 + 0.6 * shade) * (1 - lumen)
    spots = ((smooth(c, c.uniform(1.0, 1.8)) - 1.9) * 8).sigmoid() * (gleam * 8).clamp(0, 1)
    tint = torch.tensor([0.3, 1.0, 0.9], device=c.device).view(1, 3, 1, 1)
    return image * (1 - veins * tint) + spots * c.uniform(0.3, 0.9)


@family("skin", "human skin", "skin", "dermoscopy picture", domain="medical")
def skin(c: Canvas) -> Tensor:
    k = c.log_uniform(12, 50)
    u, v = c.coordinates(c.uniform(0, 6), k, 0.01)
    _, edge, key = voronoi(c, u, v * c.uniform(0.5, 1), 0.9)
    lines = torch.exp(-edge * c.uniform(4, 12)) * c.uniform(0, 0.25)
    red = c.uniform(0.45, 0.95)
    green = red * c.uniform(0.66, 0.86)
    tone = torch.cat([red, green, green * c.uniform(0.75, 1.0)], 1)
    image = textured(c, c.fractal(1.1) + c.uniform(0, 1) * c.fractal(1.9), (0.02, 0.09), tone)
    image = image * (1 - lines) * (1 + 0.06 * (own(c, key) - 0.5))
    hairy, common = c.chance(0.6), c.uniform(0, 6)
    for _ in range(5):
        start, thick = c.uniform(-0.1, 1.1, 2), c.uniform(0.001, 0.004)
        distance, along = c.polyline(c.walk(4, c.uniform(0.2, 1), 0.2, start, common + 0.5 * c.normal()))
        hair = c.smoothstep(distance - thick * (1 - along), 2.5) * c.chance(0.6) * hairy
        image = image * (1 - c.uniform(0.3, 0.8) * hair)
    return image
