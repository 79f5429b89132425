"""What is found on scans."""

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .drawing import blobs, paint, relief, sample, sign, soft, strength, turn
from .registry import Registry

defect = Registry()


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
