"""Lines: scratches, cuts, cracks, threads, folds."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .drawing import (
    PIXEL,
    about,
    blobs,
    coverage,
    gathered,
    jittered,
    line_mask,
    mean_in,
    paint,
    sample,
    sign,
    spots,
    strength,
    stroke,
    turn,
    width,
)
from .registry import Registry

defect = Registry()


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
