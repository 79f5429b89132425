"""Drawn defects with exact masks: what goes wrong on surfaces, parts and scans, batched over pictures.

A defect's `draw` proposes a changed picture and a weight that is above one half where the change is; `apply` then
keeps the change on the foreground, makes sure that it can be seen, and turns the weight into a mask of zeros and ones.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas, mix

Draw = Callable[[Canvas, Tensor, Tensor], tuple[Tensor, Tensor]]
CELLS = 28  # visibility and positions are judged on a grid of this many cells a side
PIXEL = 1 / 112  # line widths are given in pixels of a 112-pixel picture


@dataclass(frozen=True)
class Defect:
    """One kind of defect, its words for captions, and how to draw it."""

    name: str
    adjectives: tuple[str, ...]  # put before a noun
    phrases: tuple[str, ...]  # put after a noun
    domain: str  # "industrial", "medical" or "any"
    draw: Draw
    crosses: bool = False  # may leave the foreground: a hair hangs over the edge, a bent part moves it


DEFECTS: dict[str, Defect] = {}


def defect(
    *adjectives: str, phrases: tuple[str, ...], domain: str = "industrial", crosses: bool = False
) -> Callable[[Draw], Draw]:
    """Put the decorated function into DEFECTS under its own name."""

    def register(draw: Draw) -> Draw:
        name = draw.__name__.replace("_", " ")
        DEFECTS[name] = Defect(name, adjectives, phrases, domain, draw, crosses)
        return draw

    return register


def apply(kind: Defect, canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a defect on every picture. Where nothing visible could be drawn, the original picture and an empty mask come
    back."""
    drawn, weight = kind.draw(canvas, image, foreground)
    allowed = torch.ones_like(foreground) if kind.crosses else foreground
    change = (drawn - image) * allowed
    # A grey picture often comes from a camera or a scanner that knows no colours.
    grey = (image.amax(1) - image.amin(1)).mean((1, 2)).view(-1, 1, 1, 1) < 0.02
    colourless = grey & (canvas.chance(1.0 if kind.domain == "medical" else 0.5) > 0)
    change = torch.where(colourless, change.mean(1, keepdim=True), change)
    weight = weight.clamp(0, 1) * allowed
    mask = (weight > 0.5).float()
    headroom = canvas.uniform(1.05, 1.5)
    # A change that drowns in the texture is first exaggerated; one that does not add up to a visible difference even
    # then (a patch moved within a random texture) gets a brightness of its own, where possible the way it tends to.
    seen = visibility(image, (image + change).clamp(0, 1), mask, foreground)
    change = change * torch.where(seen < 1, (headroom / seen.clamp(min=1e-3)).clamp(1, 3), 1.0)
    faint = (seen < 1).view(-1).nonzero().view(-1)
    if len(faint):
        old, m, fg = image[faint], mask[faint], foreground[faint]
        new = (old + change[faint]).clamp(0, 1)
        missing = (headroom[faint] - visibility(old, new, m, fg)).clamp(0, 1.5)
        level, trend = mean_in(old, m).mean(1, keepdim=True), mean_in(new - old, m).mean(1, keepdim=True)
        way = torch.where((level - 0.5).abs() > 0.35, 0.5 - level, trend + 1e-6).sign()
        change[faint] = (new + way * missing * 0.1 * weight[faint]).clamp(0, 1) - old
        seen[faint] = visibility(old, old + change[faint], m, fg)
    kept = (seen > 0.7) & (mask.sum((2, 3), keepdim=True) >= 3)
    return torch.where(kept, (image + change).clamp(0, 1), image), mask * kept


def visibility(old: Tensor, new: Tensor, mask: Tensor, foreground: Tensor) -> Tensor:
    """(n, 1, 1, 1): how visible the change inside the mask is; 1 is just visible. Colour and texture of cells are
    compared with how much they vary a few cells on anyway, thin things pixel by pixel with the fine noise."""
    area = mask.sum((2, 3), keepdim=True)
    border = F.max_pool2d(mask, 3, 1, 1).sum((2, 3), keepdim=True) - area
    thin = area < 1.2 * border  # under about 2.4 pixels wide
    cells = F.adaptive_avg_pool2d(mask, CELLS)
    ground = F.adaptive_avg_pool2d(foreground, CELLS) + 1e-6
    ratios = []
    for before, after, floor, ceiling in zip(summary(old), summary(new), (0.026, 0.02), (0.14, 0.08), strict=True):
        usual = sum(
            mean_in((before - before.roll(3, d)).abs(), ground * ground.roll(3, d)).mean(1, keepdim=True)
            for d in (2, 3)
        )
        change = mean_in((after - before).abs(), cells).amax(1, keepdim=True)
        ratios.append(change / (0.7 * usual).clamp(floor, ceiling))
    fine = (old[..., 1:] - old[..., :-1]).abs().mean((1, 2, 3), keepdim=True)
    change = mean_in((new - old).abs(), mask).amax(1, keepdim=True)
    line = change / (1.5 * fine).clamp(0.035, 0.18)
    return torch.where(thin, line, torch.maximum(*ratios)) * (area > 0)


def summary(image: Tensor) -> tuple[Tensor, Tensor]:
    """Colour, and deviation of the brightness, within each cell."""
    pooled = F.adaptive_avg_pool2d(torch.cat([image, image.mean(1, keepdim=True).square()], 1), CELLS)
    colour = pooled[:, :3]
    return colour, (pooled[:, 3:] - colour.mean(1, keepdim=True).square()).clamp(min=1e-8).sqrt()


# -- helpers ---------------------------------------------------------------------------------------------------------


def mean_in(field: Tensor, weight: Tensor) -> Tensor:
    """Mean over the picture, weighted. (n, channels, 1, 1)"""
    return (field * weight).sum((2, 3), keepdim=True) / (weight.sum((2, 3), keepdim=True) + 1e-6)


def sign(canvas: Canvas, dark: float = 0.5) -> Tensor:
    return 1 - 2 * canvas.chance(dark)


def strength(canvas: Canvas, low: float = 0.04, high: float = 0.4) -> Tensor:
    """Contrasts: mostly subtle, now and then blatant."""
    return canvas.log_uniform(low, high) * (1 + canvas.chance(0.12))


def spots(canvas: Canvas, foreground: Tensor, k: int = 1, rim: bool = False) -> Tensor:
    """(n, k, 2) random points on the foreground, or near its edge where it has one."""
    cells = F.adaptive_avg_pool2d(foreground, CELLS)
    if rim:
        edge = cells * F.max_pool2d(1 - cells, 3, 1, 1)
        cells = torch.where(edge.amax((2, 3), keepdim=True) > 0.05, edge, cells)
    chances = cells.flatten(1).square() + 1e-6
    index = torch.multinomial(chances, k, replacement=True, generator=canvas.generator)
    points = torch.stack([index % CELLS, index // CELLS], -1)
    return (points + torch.rand(points.shape, generator=canvas.generator, device=canvas.device)) / CELLS


def gathered(canvas: Canvas, points: Tensor, spread: Tensor) -> Tensor:
    """In half of the pictures, bring the later points (n, k, 2) near the first one."""
    away = canvas.normal(points[0].numel()).view_as(points) * spread.view(-1, 1, 1)
    away[:, 0] = 0
    return torch.where(canvas.chance(0.5).view(-1, 1, 1) > 0, points[:, :1] + away, points)


def about(canvas: Canvas, point: Tensor, angle: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Coordinates about `point` (n, 2), turned by `angle`."""
    cx, cy = (point[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    return canvas.coordinates(angle, cx=cx, cy=cy)


def turn(canvas: Canvas) -> Tensor:
    return canvas.uniform(0, 2 * math.pi)


def jittered(canvas: Canvas, amount: Tensor | float, slope: Tensor | float, low_cut: float = 0.0) -> Canvas:
    """A canvas whose coordinates are bent by noise: what is drawn on it comes out jagged."""
    bent, shift = copy.copy(canvas), canvas.fractal(slope, low_cut, channels=2) * amount
    bent.x, bent.y = canvas.x + shift[:, :1], canvas.y + shift[:, 1:]
    return bent


def sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The picture's values at positions (x, y) in fractions of the side, mirrored beyond the border."""
    grid = torch.cat([x, y], 1).permute(0, 2, 3, 1) * 2 - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def blobs(canvas: Canvas, foreground: Tensor, low: float, high: float, most: int = 1, rough: Tensor | None = None,
          stretch: float = 2.5, boxy: float = 0.0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Signed distance (negative inside) to up to `most` irregular blobs of extent low..high, and their usual radius."""
    radius = canvas.log_uniform(low, high) / 2
    rough = canvas.uniform(0.03, 0.4) if rough is None else rough
    bumps = canvas.fractal(canvas.uniform(1.6, 3.2), low_cut=0.5 / radius) * rough
    centres, best = spots(canvas, foreground, most), None
    centres = gathered(canvas, centres, 2.5 * radius) if most > 1 else centres
    box = canvas.chance(boxy)
    for i in range(most):
        u, v = about(canvas, centres[:, i], turn(canvas) * (1 - box * canvas.chance(0.5)))
        aspect = canvas.log_uniform(1, stretch).sqrt()
        u, v = u / aspect, v * aspect
        reach = (u.square() + v.square()).sqrt()
        reach = torch.where(box > 0, torch.maximum(u.abs(), v.abs()), reach) if boxy else reach
        r = radius * canvas.log_uniform(0.5, 1.3) if i else radius
        distance = reach - r * (1 + bumps.clamp(min=-0.7)) + (9 * canvas.chance(0.5) if i else 0)
        best = distance if best is None else torch.minimum(best, distance)
    return best, radius


def soft(canvas: Canvas, distance: Tensor, radius: Tensor, sharp: float = 0.5) -> Tensor:
    """Weight of a blob, with a sharp edge in a share of the pictures and one as wide as the blob's radius in others."""
    wide = 1 + canvas.uniform(0.3, 1.5) * radius * canvas.size
    return canvas.smoothstep(distance, mix(wide, canvas.uniform(0.8, 1.8), canvas.chance(sharp)))


def paint(canvas: Canvas, image: Tensor, weight: Tensor, change: Tensor, opacity: Tensor | float = 0.0,
          tint: float = 0.3) -> Tensor:  # fmt: skip
    """Shift the colour by `change`, with a random tint, and hide the texture below by `opacity`. `weight` blends."""
    change = change * (1 + tint * canvas.normal(3) * canvas.chance(0.5))
    body = mix(image, mean_in(image, weight), opacity) + change
    return mix(image, body, weight).clamp(0, 1)


def relief(height: Tensor, angle: Tensor) -> Tensor:
    """Shading of a height field lit from `angle`: positive on the lit side, at most 1 in size."""
    padded = F.pad(height, (1, 1, 1, 1), mode="replicate")
    slope = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * torch.cos(angle)
    slope = slope + (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * torch.sin(angle)
    return slope / (slope.abs().amax((2, 3), keepdim=True) + 1e-6)


def donor(canvas: Canvas, image: Tensor, other: float) -> Tensor:
    """The same picture, or another one of the batch, turned and shifted: material for patches."""
    order = torch.randperm(canvas.n, generator=canvas.generator, device=canvas.device)
    taken = torch.where(canvas.chance(other).view(-1) > 0, order, torch.arange(canvas.n, device=canvas.device))
    quarter = canvas.integers(0, 4) * (math.pi / 2)
    angle = torch.where(canvas.chance(0.5) > 0, quarter, turn(canvas)) * canvas.chance(0.7)
    u, v = canvas.coordinates(angle, scale=canvas.log_uniform(0.7, 1.4))
    away = canvas.uniform(0.08, 0.5, 2) * torch.where(canvas.uniform(k=2) < 0.5, -1.0, 1.0)
    return sample(image[taken], u + 0.5 + away[:, :1], v + 0.5 + away[:, 1:])


def stroke(canvas: Canvas, foreground: Tensor, low: float, high: float, bend: float, wobble: Tensor | float,
           angle: Tensor | None = None, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Coordinates of a straight or bowed line: position along it in units of half its length, signed distance."""
    half = canvas.log_uniform(low, high) / 2
    centre = spots(canvas, foreground)[:, 0] if centre is None else centre
    u, v = about(canvas, centre, turn(canvas) if angle is None else angle)
    v = v + canvas.normal() * bend * (u.square() / (2 * half) - half / 4) + wobble
    return u / half, v


def width(canvas: Canvas, low: float = 0.7, high: float = 4.0) -> Tensor:
    return (canvas.log_uniform(low, high) * PIXEL).clamp(min=0.7 / canvas.size)


def coverage(canvas: Canvas, distance: Tensor, wide: Tensor) -> Tensor:
    return canvas.smoothstep(distance - wide / 2, canvas.uniform(0.9, 1.6))


def line_mask(canvas: Canvas, distance: Tensor, wide: Tensor) -> Tensor:
    """Every pixel that a line touches noticeably: never narrower than a pixel and a bit, so that it stays connected."""
    return (distance < wide / 2 + 0.4 / canvas.size).float()


# -- lines -----------------------------------------------------------------------------------------------------------


@defect("scratched", "scraped", phrases=("with a scratch", "with scratches", "with a fine scratch"))
def scratch(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    wobble = canvas.fractal(2.0) * canvas.uniform(0, 0.012) * canvas.chance(0.7)
    wide, angle = width(canvas), turn(canvas)
    parallel, tapered = canvas.chance(0.6), canvas.chance(0.5)
    centres = gathered(canvas, spots(canvas, foreground, 4), canvas.uniform(0.01, 0.1))
    best = torch.full_like(foreground, 9.0)
    for i in range(4):
        tilt = torch.where(parallel > 0, canvas.normal() * 0.1, turn(canvas))
        u, v = stroke(canvas, foreground, 0.05, 1.0, 0.5, wobble, angle + tilt, centres[:, i])
        excess = (u.abs() - 1).clamp(min=0) * 0.3 + tapered * (u.abs() - 0.3).clamp(0, 0.7) * wide * 0.6
        best = torch.minimum(best, v.abs() + excess + (9 * canvas.chance(0.6) if i else 0))
    tone, cover = sign(canvas, 0.45) * strength(canvas, 0.06, 0.5), coverage(canvas, best, wide)
    rim = canvas.smoothstep(best - wide, 1.5) - cover
    broken = 1 - canvas.chance(0.4) * canvas.uniform(0.2, 0.8) * (canvas.fractal(1.5) > 0).float()
    drawn = paint(canvas, image, cover * broken, tone, opacity=canvas.uniform(0, 0.8))
    drawn = drawn - rim.clamp(min=0) * tone * canvas.uniform(0.2, 0.7) * canvas.chance(0.4)
    return drawn, line_mask(canvas, best, wide)


@defect("cut", "slashed", phrases=("with a cut", "with a deep cut", "with a slit"))
def cut(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    u, v = stroke(canvas, foreground, 0.05, 0.5, 0.25, canvas.fractal(1.6) * canvas.uniform(0, 0.004))
    wide = width(canvas, 1.2, 6.0)
    opening = wide * (1 - u.square()).clamp(min=0).sqrt()
    distance = v.abs() - opening / 2 + (u.abs() - 1).clamp(min=0)
    inside = canvas.smoothstep(distance, 1.2)
    lip = canvas.smoothstep((v - wide * 0.8).abs() - opening / 2, 1.5) * (u.abs() < 1) * (1 - inside)
    tone = strength(canvas, 0.08, 0.5)
    drawn = paint(canvas, image, inside, -tone, opacity=canvas.uniform(0.2, 1), tint=0.1)
    drawn = drawn + lip * tone * canvas.uniform(0.1, 0.8) * canvas.chance(0.7)
    return drawn, (distance < 0.4 / canvas.size).float() * (u.abs() < 1.05)


@defect("cracked", "fractured", phrases=("with a crack", "with a hairline crack", "with fine cracks"), domain="any")
def crack(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    bent = jittered(canvas, canvas.log_uniform(0.003, 0.02), canvas.uniform(1.1, 1.8))
    length, angle = canvas.log_uniform(0.1, 1.2), turn(canvas)
    path = canvas.walk(4, length, canvas.uniform(0.1, 0.6), canvas.uniform(k=2), angle)
    path = path - path.mean(1, keepdim=True) + spots(canvas, foreground)
    best, where = bent.polyline(path)
    wide = width(canvas, 0.7, 4.0) * (1.3 - where * canvas.uniform(0.2, 1.0))
    best = best - wide / 2
    for i in (1, 3):
        side = angle + sign(canvas) * canvas.uniform(0.4, 1.2)
        branch = canvas.walk(2, length * canvas.uniform(0.15, 0.5), 0.4, path[:, i].view(-1, 2, 1, 1), side)
        d, where = bent.polyline(branch)
        best = torch.minimum(best, d - wide * (0.4 - 0.3 * where) + 9 * canvas.chance(0.5))
    best = best + canvas.fractal(1.5) * wide.mean((2, 3), keepdim=True) * canvas.uniform(0, 0.3)
    tone = sign(canvas, 0.85) * strength(canvas, 0.06, 0.5)
    drawn = paint(canvas, image, canvas.smoothstep(best, canvas.uniform(0.9, 1.8)), tone, canvas.uniform(0, 0.9), 0.1)
    return drawn, (best < 0.4 / canvas.size).float()


@defect("crazed", "alligator-cracked", phrases=("with a network of cracks", "with many cracks", "with craquelure"))
def crack_network(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    region, radius = blobs(canvas, foreground, 0.3, 1.0, rough=canvas.uniform(0.1, 0.4))
    bent = jittered(canvas, canvas.uniform(0.002, 0.012), 1.4)
    centre = mean_in(torch.cat([canvas.x, canvas.y], 1), (region < 0).float())
    # Seeds on a loose grid: two that nearly coincide would leave a filled patch instead of a crack between them.
    jitter, axes = canvas.uniform(-0.17, 0.17, 32) * radius, turn(canvas)
    first = second = torch.full_like(foreground, 9.0)
    for i in range(16):
        p, q = (i % 4 - 1.5) * 0.65 * radius, (i // 4 - 1.5) * 0.65 * radius
        x = centre[:, :1] + p * torch.cos(axes) - q * torch.sin(axes) + jitter[:, i : i + 1]
        y = centre[:, 1:] + p * torch.sin(axes) + q * torch.cos(axes) + jitter[:, 16 + i : 17 + i]
        d = (bent.x - x).square() + (bent.y - y).square()
        first, second = torch.minimum(first, d), torch.minimum(second, torch.maximum(first, d))
    wide = width(canvas, 0.7, 2.5) * (1 + 0.3 * canvas.fractal(1.5))
    distance = torch.maximum((second.sqrt() - first.sqrt() - wide) / 2, region)
    tone = sign(canvas, 0.85) * strength(canvas, 0.06, 0.4)
    drawn = paint(canvas, image, canvas.smoothstep(distance, 1.3), tone, opacity=canvas.uniform(0, 0.7), tint=0.1)
    return drawn, (distance < 0.4 / canvas.size).float()


@defect("contaminated", phrases=("with a thread on it", "with a hair on it", "with a fibre"), crosses=True)
def thread(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    path = canvas.walk(7, canvas.log_uniform(0.15, 1.5), canvas.uniform(0.05, 0.6), canvas.uniform(k=2), turn(canvas))
    path = path - path.mean(1, keepdim=True) + spots(canvas, foreground)
    best, _ = jittered(canvas, 0.01, 2.3).polyline(path)
    wide = width(canvas, 0.7, 3.5)
    cover = coverage(canvas, best, wide)
    offset = canvas.normal(2) * 2 * PIXEL
    shadow = sample(canvas.smoothstep(best - wide / 2, 3.0), canvas.x + offset[:, :1], canvas.y + offset[:, 1:])
    drawn = image * (1 - shadow * canvas.uniform(0, 0.35) * canvas.chance(0.5))
    local = mean_in(image, cover)
    colour = mix(canvas.colour(0.8, 0.0, 1.0), local + sign(canvas) * strength(canvas, 0.08), canvas.chance(0.6))
    return mix(drawn, colour, cover * canvas.uniform(0.5, 1)), line_mask(canvas, best, wide)


@defect("interrupted", phrases=("with a broken line", "with an interrupted finger", "with a dark stripe"))
def broken_line(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    angle = canvas.integers(0, 2) * (math.pi / 2) + canvas.normal() * canvas.chance(0.2) * 0.5
    half, wide = canvas.log_uniform(0.05, 0.7) / 2, canvas.log_uniform(1.2, 12) * PIXEL / 2
    centre = spots(canvas, foreground, 3)
    best = torch.full_like(foreground, 9.0)
    for i in range(3):
        u, v = about(canvas, mix(centre[:, :1], centre, 0.4)[:, i], angle)
        distance = torch.maximum(u.abs() - half * canvas.uniform(0.5, 1), v.abs() - wide)
        best = torch.minimum(best, distance + (9 * canvas.chance(0.65) if i else 0))
    weight = canvas.smoothstep(best, canvas.uniform(0.8, 2.5) + wide * canvas.size * canvas.uniform(0, 0.7))
    shade = 1 - canvas.chance(0.4) * canvas.uniform(0, 0.7) * (u / half).clamp(-1, 1).abs()
    drawn = paint(canvas, image, weight, sign(canvas, 0.85) * strength(canvas) * shade, canvas.uniform(0, 1), 0.05)
    return drawn, (best < 0.25 / canvas.size).float()


@defect("creased", "wrinkled", "folded", phrases=("with a fold", "with a crease", "with wrinkles"))
def fold(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    u, v = stroke(canvas, foreground, 0.15, 0.9, 0.5, canvas.fractal(2.2) * canvas.uniform(0, 0.02))
    wide = canvas.log_uniform(2, 9) * PIXEL * (1 - 0.6 * u.square()).clamp(min=0.1)
    ripple = canvas.chance(0.3) * (canvas.uniform(1, 2.5) - 1)
    t = v / wide
    fade = canvas.smoothstep((u.abs() - 1) * 0.2, 3.0)
    ridge = torch.exp(-t.square() / (1 + ripple)) * fade
    profile = (t * 2.2 * torch.exp(-t.square()) * canvas.uniform(0.3, 1) + canvas.normal() * 0.5 * ridge) * fade
    across = canvas.normal() * wide * ridge * canvas.uniform(0, 1.5)
    moved = sample(image, canvas.x + across, canvas.y + across * canvas.normal().clamp(-1.5, 1.5))
    drawn = moved + profile * sign(canvas) * strength(canvas, 0.06, 0.4)
    return drawn, (t.abs() < 1.3).float() * (u.abs() < 1.02)


# -- spots and holes -------------------------------------------------------------------------------------------------


@defect("perforated", "punctured", phrases=("with a hole", "with holes", "with a puncture"), domain="any")
def hole(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.02, 0.3, most=3, rough=canvas.uniform(0, 0.25), stretch=2.0)
    inside = canvas.smoothstep(distance, canvas.uniform(0.8, 2.5))
    wall = radius * canvas.uniform(0.1, 0.5) + 0.7 / canvas.size
    rim = torch.exp(-((distance - wall * 0.5) / wall).square()) * (1 - inside)
    tone = sign(canvas, 0.85) * strength(canvas, 0.1, 0.6)
    depth = 1 + canvas.uniform(0, 0.5) * relief(inside, turn(canvas)) - canvas.uniform(0, 0.4) * (distance > -wall)
    drawn = paint(canvas, image, inside, tone * depth, opacity=canvas.uniform(0.3, 1), tint=0.15)
    slope = relief(torch.exp(-(distance / wall).clamp(min=0)), turn(canvas))
    lit = mix(torch.ones_like(rim), slope, canvas.chance(0.6))
    drawn = drawn - rim * lit * tone * canvas.uniform(0.1, 0.6) * canvas.chance(0.6)
    return drawn, canvas.smoothstep(distance - canvas.uniform(0, 0.4) / canvas.size)


@defect("pitted", "porous", phrases=("with pits", "with blowholes", "with small pores", "with pinholes"))
def pits(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    count = 8
    spread = canvas.log_uniform(0.03, 0.5).view(-1, 1, 1)
    points = spots(canvas, foreground) + canvas.normal(2 * count).view(-1, count, 2) * spread
    points = mix(points, spots(canvas, foreground, count), canvas.chance(0.2).view(-1, 1, 1))
    base, absent = canvas.log_uniform(0.012, 0.05) / 2, canvas.uniform(0, 0.9)
    best, shift = torch.full_like(foreground, 9.0), canvas.normal(2) * 0.3
    for i in range(count):
        u, v = about(canvas, points[:, i])
        d = ((u * canvas.log_uniform(0.7, 1.4)).square() + v.square()).sqrt() - base * canvas.log_uniform(0.6, 1.6)
        best = torch.minimum(best, d + (9 * (canvas.uniform() < absent).float() if i else 0))
    inside = canvas.smoothstep(best, canvas.uniform(0.8, 2.0))
    tone = sign(canvas, 0.75) * strength(canvas, 0.1, 0.6)
    drawn = paint(canvas, image, inside, tone, opacity=canvas.uniform(0.2, 1), tint=0.1)
    glint = sample(inside, canvas.x + shift[:, :1] * base * 4, canvas.y + shift[:, 1:] * base * 4) * (1 - inside)
    drawn = drawn - glint * tone * canvas.uniform(0.1, 0.7) * canvas.chance(0.5)
    return drawn, (best < 0.3 / canvas.size).float()


@defect("dusty", phrases=("with dust", "with particles", "with specks of dirt"))
def dust(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    weight, _ = specks(canvas, foreground, canvas.uniform(0.35, 0.7))
    tone = sign(canvas, 0.5) * strength(canvas, 0.08, 0.5)
    return paint(canvas, image, weight, tone, opacity=canvas.uniform(0.3, 1)), weight


@defect("corroded", "rusty", phrases=("with corrosion", "with rust", "with rust spots"))
def corrosion(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    weight, near = specks(canvas, foreground, canvas.uniform(0.0, 0.45))
    rust = torch.tensor([0.1, -0.35, -0.8], device=canvas.device).view(1, 3, 1, 1) * (1 - canvas.chance(0.35))
    tone = (rust - sign(canvas, 0.25) * canvas.uniform(0.2, 1)) * strength(canvas, 0.08, 0.45)
    drawn = paint(canvas, image, weight, tone * (1 + 0.4 * canvas.fractal(0.8)), opacity=canvas.uniform(0.2, 0.9))
    return mix(drawn, drawn + tone * 0.3, near * (1 - weight) * canvas.chance(0.4)), weight


def specks(canvas: Canvas, foreground: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Grains of a noise above `level` times its peak, denser in the middle of a region; and the region's weight."""
    region, radius = blobs(canvas, foreground, 0.1, 0.8, most=2, rough=canvas.uniform(0.1, 0.5))
    grains = canvas.fractal(canvas.uniform(1.8, 3.0), low_cut=canvas.log_uniform(3, 20))
    near = canvas.smoothstep(region, 2 + radius * canvas.size)
    heap = grains - 2 * (1 - near)
    peak = heap.amax((2, 3), keepdim=True).clamp(min=0.5)
    return torch.sigmoid((heap - level * peak) * 8), near


# -- areas -----------------------------------------------------------------------------------------------------------


@defect("stained", "soiled", phrases=("with a stain", "with a dried water mark", "with a spot"), domain="any")
def stain(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.04, 0.5, most=3)
    weight = soft(canvas, distance, radius, 0.4)
    ring = torch.exp(-((distance / radius + 0.12) / canvas.uniform(0.06, 0.2)).square())
    mottle = 1 + canvas.uniform(0, 0.5) * canvas.fractal(1.6, low_cut=0.5 / radius)
    dried = mix(mottle, canvas.uniform(0.1, 0.8) + ring * 1.5, canvas.chance(0.4))
    tone = sign(canvas, 0.65) * strength(canvas) * dried
    return paint(canvas, image, weight, tone, opacity=canvas.uniform(0, 0.7), tint=0.5), weight


@defect("uneven", phrases=("with an uneven area", "with uneven brightness", "with a shaded region"), domain="any")
def uneven(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    u, v = about(canvas, spots(canvas, foreground)[:, 0], turn(canvas))
    stretch = canvas.log_uniform(0.5, 2)
    field = canvas.fractal(canvas.uniform(1.8, 2.8)) * canvas.uniform(0.2, 1.5)
    field = field - ((u * stretch).square() + (v / stretch).square()).sqrt() * canvas.uniform(3, 8)
    cells = F.adaptive_avg_pool2d(field, CELLS).flatten(1).sort(1, descending=True).values
    area = canvas.log_uniform(0.05, 0.4)
    level = cells.gather(1, (area * CELLS * CELLS).long().view(-1, 1)).view(-1, 1, 1, 1)
    weight = torch.sigmoid((field - level) / canvas.log_uniform(0.03, 0.5))
    tone = sign(canvas, 0.6) * canvas.log_uniform(0.05, 0.35)
    return paint(canvas, image, weight, tone, opacity=canvas.uniform(0, 0.4), tint=0.3), weight


@defect("discoloured", "faded", phrases=("with a discoloured area", "with a colour defect", "with wrong colour"))
def discolouration(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.05, 0.6, most=2, boxy=0.3)
    weight = soft(canvas, distance, radius, 0.6)
    colour = canvas.colour(1.0, 0.05, 0.95)
    glaze = mix(image, colour, canvas.uniform(0.08, 0.7))
    faded = image.mean(1, keepdim=True) + sign(canvas) * strength(canvas)
    body = mix(image * (0.5 + colour), mix(glaze, faded, canvas.chance(0.25)), canvas.chance(0.7))
    return mix(image, body, weight), weight


@defect("burnt", "scorched", phrases=("with a burn", "with a burn mark", "with a scorch mark"))
def burn(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.05, 0.45, most=2, rough=canvas.uniform(0.1, 0.5))
    halo = canvas.smoothstep(distance - radius * 0.15, 2 + radius * canvas.size * canvas.uniform(0.4, 1))
    core = canvas.smoothstep(distance + radius * 0.5, 1 + radius * canvas.size * canvas.uniform(0.2, 0.8))
    brown = torch.tensor([0.45, 0.75, 1.0], device=canvas.device).view(1, 3, 1, 1)
    amount = canvas.log_uniform(0.12, 0.8)
    drawn = image * (1 - halo * amount * mix(brown, torch.ones_like(brown), canvas.chance(0.4)))
    return drawn * (1 - core * canvas.uniform(0, 0.8) * (1 + 0.2 * canvas.fractal(1.0))), halo


@defect("oily", "sticky", phrases=("with glue", "with a drop of liquid", "with an oil stain"))
def liquid(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.04, 0.4, most=3, rough=canvas.uniform(0.03, 0.2))
    depth = canvas.uniform(0.2, 0.8) * radius
    height = (-distance / depth).clamp(0, 1)
    height = height * (2 - height)
    bend = canvas.uniform(0, 0.3) * radius * height
    below = sample(image, canvas.x + bend, canvas.y - bend)
    weight = canvas.smoothstep(distance, canvas.uniform(0.8, 2.0))
    drawn = paint(canvas, mix(image, below, weight), weight, sign(canvas, 0.7) * strength(canvas, 0.03, 0.3), 0.2, 0.6)
    lit = relief(height, turn(canvas))
    shine = (lit - 0.55).clamp(min=0) * canvas.uniform(0, 1.2) + lit * canvas.uniform(0, 0.15)
    return drawn + shine * weight, weight


@defect("contaminated", "dirty", phrases=("with contamination", "with a foreign object", "with dirt"), domain="any")
def contamination(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.02, 0.35, most=4, boxy=0.15)
    weight = canvas.smoothstep(distance, canvas.uniform(0.8, 2.5))
    shadow = canvas.smoothstep(distance - radius * 0.2, 2 + radius * canvas.size * 0.5)
    drawn = image * (1 - shadow * canvas.uniform(0, 0.3) * canvas.chance(0.4))
    lit = relief((-distance / radius).clamp(0, 0.6), turn(canvas)) * canvas.uniform(0, 0.25)
    local = mean_in(image, weight) + sign(canvas) * strength(canvas, 0.08)
    colour = mix(canvas.colour(0.9, 0.0, 1.0), local, canvas.chance(0.55))
    body = colour + lit + canvas.fractal(canvas.uniform(0.3, 1.6)) * canvas.uniform(0, 0.08)
    return mix(drawn, body, weight * canvas.uniform(0.6, 1)), weight


@defect("peeling", "flaking", phrases=("with peeled coating", "with flaking paint", "with a worn coating"))
def peeling(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, _ = blobs(canvas, foreground, 0.05, 0.5, most=3, rough=canvas.uniform(0.25, 0.7))
    weight = canvas.smoothstep(distance, 1.2)
    base = mix(mean_in(image, weight) + sign(canvas) * strength(canvas, 0.06, 0.4), canvas.colour(), canvas.chance(0.3))
    base = base + canvas.fractal(canvas.uniform(0.3, 1.5)) * canvas.uniform(0.005, 0.05)
    lip = relief(canvas.smoothstep(distance, 4.0), turn(canvas)) * canvas.uniform(0, 0.3)
    return mix(image, base, weight) + lip, weight


@defect("roughened", "frayed", "worn", phrases=("with a rough patch", "with a frayed area", "with disturbed texture"))
def rough(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.06, 0.5, most=2, rough=canvas.uniform(0.1, 0.5))
    weight = soft(canvas, distance, radius, 0.5)
    shift = canvas.fractal(canvas.uniform(0.2, 1.3), channels=2) * canvas.log_uniform(0.008, 0.05)
    body = sample(image, canvas.x + shift[:, :1], canvas.y + shift[:, 1:])
    fibres = canvas.anisotropic(turn(canvas), canvas.log_uniform(0.5, 5), canvas.uniform(0.4, 1.0))
    body = body + fibres * strength(canvas, 0.02, 0.15) + canvas.normal() * 0.04
    return mix(image, body, weight), weight


@defect("melted", "blurred", phrases=("with a melted area", "with a blurred area", "with a washed-out area"))
def melted(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.07, 0.5, most=2, boxy=0.2)
    weight = soft(canvas, distance, radius, 0.5)
    body = canvas.blur(image, canvas.log_uniform(1.5, 10) * canvas.size * PIXEL)
    body = body + canvas.normal() * canvas.log_uniform(0.01, 0.12) * (1 + 0.3 * canvas.fractal(2.0))
    return mix(image, body, weight * canvas.uniform(0.7, 1)), weight


# -- shape and material ----------------------------------------------------------------------------------------------


@defect("dented", "bumped", phrases=("with a dent", "with a bump", "with a pressed-in spot"))
def dent(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.04, 0.4, most=2, rough=canvas.uniform(0, 0.2))
    rho = (1 + distance / radius).clamp(min=0)
    steep = canvas.uniform(2, 5)
    height = torch.sigmoid((0.75 - rho) * 2 * steep)
    lit, tone = relief(height, turn(canvas)), strength(canvas, 0.06, 0.4)
    pull = canvas.uniform(-0.3, 0.3) * height * (1 - height) * 4 * radius
    weight = canvas.smoothstep(distance - radius * 0.1, 1 + radius * canvas.size * 0.4)
    moved = mix(image, sample(image, canvas.x + pull, canvas.y + pull), weight)
    return moved + (lit - canvas.uniform(0, 0.4) * height) * tone, weight


@defect("chipped", phrases=("with a chip", "with a missing piece", "with a chipped edge"))
def chip(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance = shard(canvas, foreground, 0.05, 0.35)
    weight = canvas.smoothstep(distance, canvas.uniform(0.8, 1.8))
    fill = outside(canvas, image, foreground, weight) + canvas.fractal(0.8) * canvas.uniform(0, 0.03)
    rim = torch.exp(-(distance.clamp(min=0) / (1.5 * PIXEL)).square()) * (1 - weight)
    drawn = mix(image, fill, weight) + rim * canvas.normal() * 0.12 * canvas.chance(0.6)
    return drawn, weight


@defect("broken", "damaged", phrases=("with a broken part", "with a break", "with damage"), domain="any")
def broken(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance = shard(canvas, foreground, 0.1, 0.55)
    weight = canvas.smoothstep(distance, 1.2)
    crumb = canvas.fractal(canvas.uniform(0.8, 1.8), low_cut=canvas.uniform(1, 10))
    base = mean_in(image, weight) + sign(canvas, 0.6) * strength(canvas, 0.05, 0.4)
    facets = relief(crumb, turn(canvas)) * canvas.uniform(0, 0.35) + crumb * canvas.uniform(0.01, 0.08)
    edge = torch.exp(-(distance / PIXEL).square()) * canvas.uniform(-0.25, 0.15) * canvas.chance(0.6)
    edge = edge * torch.sigmoid(3 * canvas.fractal(2.0))
    return mix(image, base + facets, weight * canvas.uniform(0.7, 1)) + edge, canvas.smoothstep(distance - 0.5 * PIXEL)


def shard(canvas: Canvas, foreground: Tensor, low: float, high: float) -> Tensor:
    """Signed distance to an angular piece with a jagged outline at the foreground's edge."""
    radius = canvas.log_uniform(low, high) / 2
    u, v = about(canvas, spots(canvas, foreground, rim=True)[:, 0])
    distance, first = torch.full_like(foreground, -9.0), turn(canvas)
    for i in range(5):
        angle = first + i * (2 * math.pi / 5) + canvas.normal() * 0.3
        side = u * torch.cos(angle) + v * torch.sin(angle) - radius * canvas.uniform(0.4, 1.3)
        distance = torch.maximum(distance, side)
    return distance + canvas.fractal(canvas.uniform(1.2, 1.8)) * radius * canvas.uniform(0, 0.25)


def outside(canvas: Canvas, image: Tensor, foreground: Tensor, weight: Tensor) -> Tensor:
    """The background's colour, or an invented one where the picture shows no background."""
    ground = 1 - foreground
    invented = mean_in(image, weight) + sign(canvas, 0.75) * strength(canvas, 0.08, 0.5)
    return torch.where(ground.mean((2, 3), keepdim=True) > 0.02, mean_in(image, ground.square()), invented.clamp(0, 1))


@defect("bent", "warped", "deformed", phrases=("with a bent part", "with a deformation", "with a warp"), crosses=True)
def bent(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    radius = canvas.log_uniform(0.1, 0.5) / 2
    u, v = about(canvas, spots(canvas, foreground)[:, 0])
    lean, stretch = turn(canvas), canvas.log_uniform(0.6, 1.7)
    p, q = u * torch.cos(lean) + v * torch.sin(lean), v * torch.cos(lean) - u * torch.sin(lean)
    window = torch.exp(-(((p * stretch).square() + (q / stretch).square()) / radius.square()).square())
    kind, amount = canvas.integers(0, 3), canvas.uniform(0.25, 0.8) * sign(canvas)
    angle = turn(canvas)
    along = radius * amount * torch.cos(angle), radius * amount * torch.sin(angle)
    dx = torch.where(kind == 0, along[0], torch.where(kind == 1, u * amount, -v * amount * 1.5)) * window
    dy = torch.where(kind == 0, along[1], torch.where(kind == 1, v * amount, u * amount * 1.5)) * window
    both = sample(torch.cat([image, foreground], 1), canvas.x + dx, canvas.y + dy)
    weight = (window > 0.3).float() * torch.maximum(foreground, both[:, 3:])
    shading = canvas.normal() * 0.08 * (dx + dy) / radius
    return mix(image, both[:, :3] + shading, (window * 4).clamp(0, 1)), weight


@defect("smudged", "smeared", phrases=("with a print error", "with a smudge", "with smeared print"))
def smudge(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.08, 0.5, boxy=0.6, rough=canvas.uniform(0, 0.2))
    weight, angle = soft(canvas, distance, radius, 0.6), turn(canvas)
    u, _ = canvas.coordinates(angle, cx=canvas.uniform(0.2, 0.8), cy=canvas.uniform(0.2, 0.8))
    # Squeezing the coordinate along one direction draws the pixels out into streaks; a constant shift doubles them.
    drag = mix(-u * canvas.uniform(0.7, 1.0), canvas.uniform(0.03, 0.12), canvas.chance(0.4))
    body = sample(image, canvas.x + drag * torch.cos(angle), canvas.y + drag * torch.sin(angle))
    ghost = mix(body, torch.minimum(body, image), canvas.chance(0.3))
    return mix(image, ghost + sign(canvas) * strength(canvas, 0.02, 0.15), weight * canvas.uniform(0.6, 1)), weight


@defect("misaligned", "misplaced", phrases=("with a misplaced part", "with a misplaced patch", "with a wrong piece"))
def misplaced(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, _ = blobs(canvas, foreground, 0.06, 0.45, boxy=0.6, rough=canvas.uniform(0, 0.3), stretch=4.0)
    weight = canvas.smoothstep(distance, canvas.log_uniform(0.8, 5))
    body = donor(canvas, image, other=0.3) * canvas.log_uniform(0.8, 1.25) + canvas.normal() * 0.04
    return mix(image, body, weight * canvas.uniform(0.6, 1)), weight


@defect("impure", phrases=("with an inclusion", "with foreign material", "with an embedded grain"), domain="any")
def inclusion(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, _ = blobs(canvas, foreground, 0.05, 0.6, most=2, rough=canvas.uniform(0.3, 1.2))
    weight = canvas.smoothstep(distance, canvas.log_uniform(0.8, 4))
    body = donor(canvas, image, other=0.9)
    own = mean_in(body, weight)
    body = own + (body - own) * canvas.log_uniform(0.4, 2.0) * sign(canvas, 0.2)
    body = body + (mean_in(image, weight) - own) * canvas.uniform() + canvas.normal(3) * 0.06
    return mix(image, body, weight * canvas.uniform(0.25, 1)), weight


# -- scans -----------------------------------------------------------------------------------------------------------


@defect("abnormal", "diseased", phrases=("with a lesion", "with an abnormality", "with a nodule"), domain="medical")
def lesion(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.05, 0.45, most=2)
    weight = soft(canvas, distance, radius, 0.25)
    tone = sign(canvas, 0.5) * strength(canvas, 0.05, 0.4) * (1 + 0.25 * canvas.fractal(1.5, low_cut=0.5 / radius))
    rim = torch.exp(-((distance / radius) / 0.15).square()) * canvas.normal() * 0.1 * canvas.chance(0.3)
    return paint(canvas, image, weight, tone, opacity=canvas.uniform(0, 0.8), tint=0.2) + rim, weight


@defect("bleeding", phrases=("with a bleed", "with bleeding", "with a bright spot"), domain="medical")
def bleed(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.03, 0.3, most=4, rough=canvas.uniform(0.1, 0.6))
    weight = soft(canvas, distance, radius, 0.5)
    red = torch.tensor([0.2, -0.8, -0.7], device=canvas.device).view(1, 3, 1, 1)
    tone = mix(torch.ones_like(red), red, canvas.chance(0.4)) * strength(canvas, 0.08, 0.5)
    return paint(canvas, image, weight, tone, opacity=canvas.uniform(0.1, 0.8), tint=0.1), weight


@defect("tumorous", phrases=("with a tumour", "with a mass", "with a ring-enhancing mass"), domain="medical")
def tumour(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.08, 0.4, rough=canvas.uniform(0.05, 0.35), stretch=1.8)
    push = canvas.uniform(0, 0.25) * radius * torch.exp(-(distance / radius).clamp(min=0) * 1.5)
    pressed = sample(image, canvas.x + push * (canvas.x - 0.5), canvas.y + push * (canvas.y - 0.5))
    weight = canvas.smoothstep(distance, 1 + radius * canvas.size * canvas.uniform(0.1, 0.8))
    ring = torch.exp(-((distance / radius + 0.2) / canvas.uniform(0.1, 0.25)).square())
    core = canvas.normal() * 0.12 * canvas.smoothstep(distance + radius * 0.4, radius * canvas.size * 0.5)
    tone = sign(canvas, 0.3) * strength(canvas, 0.06, 0.4) * (0.4 + ring * canvas.uniform(0, 1.2)) + core
    texture = canvas.fractal(1.2) * canvas.uniform(0, 0.05)
    return paint(canvas, pressed, weight, tone + texture, opacity=canvas.uniform(0.2, 0.9), tint=0.1), weight


@defect("polypoid", phrases=("with a polyp", "with a growth", "with a raised bump"), domain="medical")
def polyp(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    distance, radius = blobs(canvas, foreground, 0.08, 0.45, rough=canvas.uniform(0, 0.15), stretch=1.6)
    weight = canvas.smoothstep(distance, canvas.uniform(1, 3) + radius * canvas.size * canvas.uniform(0, 0.4))
    dome, angle = (-distance / radius).clamp(0, 1).sqrt(), turn(canvas)
    lit = relief(canvas.blur(dome, radius * canvas.size * 0.15), angle)
    bottom = torch.exp(-(distance.clamp(min=0) / (radius * 0.2)).square()) * (1 - weight) * canvas.uniform(0, 0.2)
    drawn = paint(canvas, image, weight, canvas.normal() * 0.06 + lit * strength(canvas, 0.08, 0.3), 0.5, tint=0.2)
    glint = (lit - canvas.uniform(0.6, 0.85)).clamp(min=0) * 4 * canvas.uniform(0, 0.8) * canvas.chance(0.6)
    return drawn - bottom * image + glint * weight, weight
