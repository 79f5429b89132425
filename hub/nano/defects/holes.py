"""Holes, pits, dust, rust."""

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .drawing import about, blobs, paint, relief, sample, sign, spots, strength, turn
from .registry import Registry

defect = Registry()


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
