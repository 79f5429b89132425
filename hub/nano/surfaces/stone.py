"""What is built with: concrete, asphalt, stone, wood."""

import torch
from torch import Tensor

from ..canvas import Canvas, mix, standardize
from .fields import angle, fold, grain, own, profile, smooth, textured, voronoi
from .registry import Registry

family = Registry()


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
