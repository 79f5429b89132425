"""Medical pictures."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .fields import choose, fold, grain, lit, own, profile, radius, smooth, textured, voronoi, warp
from .placing import Frame
from .registry import Registry

family = Registry()


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
