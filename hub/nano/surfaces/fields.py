"""Fields that the families share: lattices, cells, profiles, light, letters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas, mix

TABLE = 32  # random numbers of lattice cells repeat after this many cells; a power of two


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


def radius(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square() + 1e-9).sqrt()


def turn(u: Tensor, v: Tensor) -> Tensor:
    """The angle around the origin as a fraction of a full turn."""
    return torch.atan2(v, u) / (2 * math.pi)
