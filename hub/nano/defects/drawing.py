"""What the defects are drawn with: contrasts, places, blobs, strokes, light."""

import copy
import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas, mix

CELLS = 28  # visibility and positions are judged on a grid of this many cells a side
PIXEL = 1 / 112  # line widths are given in pixels of a 112-pixel picture


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
    centres = spots(canvas, foreground, most)
    centres = gathered(canvas, centres, 2.5 * radius) if most > 1 else centres
    box = canvas.chance(boxy)
    distances: list[Tensor] = []
    for i in range(most):
        u, v = about(canvas, centres[:, i], turn(canvas) * (1 - box * canvas.chance(0.5)))
        aspect = canvas.log_uniform(1, stretch).sqrt()
        u, v = u / aspect, v * aspect
        reach = (u.square() + v.square()).sqrt()
        reach = torch.where(box > 0, torch.maximum(u.abs(), v.abs()), reach) if boxy else reach
        r = radius * canvas.log_uniform(0.5, 1.3) if i else radius
        distances.append(reach - r * (1 + bumps.clamp(min=-0.7)) + (9 * canvas.chance(0.5) if i else 0))
    return reduce(torch.minimum, distances), radius


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
