"""Metal, bare and painted, and the mottled material that is none in particular."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix, standardize
from .fields import angle, choose, grain, lit, metal, profile, radius, relief, textured, voronoi
from .registry import Registry

family = Registry()


@family("cloudy", "mottled texture", "texture", "material", "surface")
def cloudy(c: Canvas) -> Tensor:
    coarse = c.fractal(c.uniform(0.5, 2.4), c.log_uniform(1, 30))
    stretched = c.anisotropic(angle(c), c.log_uniform(1, 0.08 * c.size), c.log_uniform(0.7, 0.03 * c.size))
    return textured(c, mix(choose(c, coarse, coarse, stretched), grain(c), c.uniform(0, 0.6)), (0.03, 0.35))


@family("brushed metal", "brushed metal plate", "metal plate", "metal", "plate", "surface", edge=0.12, hole=0.12)
def brushed_metal(c: Canvas) -> Tensor:
    a = angle(c)
    _, v = c.coordinates(a, c.log_uniform(0.4, 1.6), c.uniform(0, 0.01) * c.chance(0.5))
    lines = profile(c, v, c.uniform(0.0, 0.7))
    short = c.anisotropic(a, c.log_uniform(0.02, 0.15) * c.size, 0.6)
    field = mix(lines, short, c.uniform(0.2, 0.9)) + c.uniform(0, 0.4) * c.white()
    sheen = 1 + c.uniform(0, 0.25) * profile(c, v * 0.4 + 0.1, 2.2)
    return textured(c, field, (0.04, 0.22), metal(c)) * sheen


@family("cast metal", "cast metal part", "metal casting", "metal", "part", "surface", edge=0.15, hole=0.15)
def cast_metal(c: Canvas) -> Tensor:
    bumps = c.fractal(c.uniform(0.6, 1.4), c.log_uniform(4, 30))
    side, _ = relief(c, bumps * 0.01, c.uniform(0, 6.3))
    field = mix(standardize(side), bumps, c.uniform(0.1, 0.6)) + 0.3 * grain(c)
    _, v = c.coordinates(angle(c), 1.0, c.uniform(0, 0.05))
    edge = c.smoothstep(v - c.uniform(-0.45, 0.45), c.log_uniform(2, 25))
    step = 1 + (c.uniform(-0.5, 0.5) * edge) * c.chance(0.35)
    return textured(c, field, (0.06, 0.3), metal(c, 0.2, 0.65)) * step


@family(
    "polished metal", "ground metal surface", "polished metal", "metal", "steel sheet", "surface", edge=0.12, hole=0.1
)
def polished_metal(c: Canvas) -> Tensor:
    a = angle(c)
    u, v = c.coordinates(a, 1.0, c.uniform(0, 0.04))
    reflection = profile(c, u * c.log_uniform(0.2, 1.0), c.uniform(1.4, 2.6)) + 0.4 * c.fractal(2.4)
    arcs = radius(u - c.uniform(-2, 2), v - c.uniform(-2, 2))
    marks = choose(c, profile(c, v * 1.3, 0.2), profile(c, arcs, 0.2), c.anisotropic(a, 0.1 * c.size, 0.7))
    base = metal(c, 0.3, 0.85) * (1 + c.uniform(0.03, 0.3) * reflection)
    return textured(c, marks + 0.4 * c.white(), (0.01, 0.09), base)


@family("magnetic tile", "magnetic tile", "dark grainy metal", "tile", "metal", "surface")
def magnetic_tile(c: Canvas) -> Tensor:
    a = choose(c, 0.0, math.pi / 2) + 0.02 * c.normal()
    u, v = c.coordinates(a, 1.0, 0.01)
    streak = c.anisotropic(a, c.log_uniform(1, 0.06 * c.size), c.log_uniform(0.6, 1.5))
    field = mix(grain(c), streak, c.uniform(0, 0.8)) + c.uniform(0, 0.7) * c.fractal(1.6)
    shade = 1 + c.uniform(0.05, 0.35) * profile(c, v * 0.5 + 0.13, 2.2) + u * c.uniform(-0.5, 0.5)
    image = textured(c, field, (0.04, 0.2), c.colour(0.02, 0.14, 0.5)) * shade
    for _ in range(2):
        edge = (v * choose(c, 1.0, -1.0)) + c.uniform(0, 0.008) * c.fractal(2.2) - c.uniform(0.28, 0.5)
        strip = c.smoothstep(-edge, c.log_uniform(1.5, 12)) * c.chance(0.45)
        image = image * (1 + strip * choose(c, c.uniform(-0.9, -0.3), c.uniform(0.2, 0.9)))
        image = image + 0.15 * c.chance(0.3) * strip * c.smoothstep(edge.abs() - 0.008)
    return image


@family("rolled steel", "hot-rolled steel strip", "steel strip", "steel", "metal", "surface", edge=0.1)
def rolled_steel(c: Canvas) -> Tensor:
    a = angle(c)
    _, v = c.coordinates(a, 1.0, c.uniform(0, 0.02))
    bands = profile(c, v * c.log_uniform(0.5, 1.2), c.uniform(0.6, 1.6)) * c.uniform(0, 1)
    flecks = c.anisotropic(a, c.log_uniform(1, 0.1 * c.size), c.log_uniform(0.7, 2.5))
    scale = (c.fractal(c.uniform(1.0, 1.7)) * c.uniform(1, 3)).tanh()
    field = bands + c.uniform(0.2, 1) * flecks + c.uniform(0, 0.9) * scale + 0.4 * grain(c)
    return textured(c, field, (0.04, 0.2), c.colour(0.04, 0.25, 0.8))


@family("painted metal", "hammered painted metal", "painted metal", "coating", "paint", "surface", edge=0.12, hole=0.12)
def painted_metal(c: Canvas) -> Tensor:
    k = c.log_uniform(8, 45)
    u, v = c.coordinates(angle(c), k, 0.01)
    first, edge, _ = voronoi(c, u, v, c.uniform(0.6, 0.95))
    dents = first.square() + 0.25 * torch.exp(-edge * 5)
    peel = c.fractal(2.4, c.log_uniform(10, 60)) * 0.2
    height = choose(c, dents, peel, peel) / k * c.log_uniform(0.03, 0.7)
    shade, gleam = lit(c, height, c.uniform(0, 6.3), c.uniform(0, 0.5))
    return textured(c, grain(c), (0.01, 0.08), c.colour(0.4)) * shade + gleam * 0.6
