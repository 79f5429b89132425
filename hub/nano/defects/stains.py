"""Areas: stains, colour, liquids, dirt, coating, texture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas, mix
from .drawing import CELLS, PIXEL, about, blobs, mean_in, paint, relief, sample, sign, soft, spots, strength, turn
from .registry import Registry

defect = Registry()


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
