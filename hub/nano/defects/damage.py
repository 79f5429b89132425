"""Shape and material: dents, chips, bent, smeared and misplaced parts, inclusions."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .drawing import PIXEL, about, blobs, donor, mean_in, relief, sample, sign, soft, spots, strength, turn
from .registry import Registry

defect = Registry()


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
