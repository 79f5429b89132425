"""Cloth, carpet, felt, leather."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix, standardize
from .fields import TABLE, angle, choose, grain, lit, own, pick, relief, smooth, textured, voronoi
from .registry import Registry

family = Registry()


@family("woven cloth", "woven cloth", "fabric", "textile", "surface", edge=0.06)
def woven_cloth(c: Canvas) -> Tensor:
    k = c.log_uniform(9, 40)
    u, v = c.coordinates(angle(c), k, c.uniform(0.0, 0.012))
    v = v * c.uniform(0.6, 1.2)
    i, j = u.floor(), v.floor()
    a, b = (u - i - 0.5).abs() * 2, (v - j - 0.5).abs() * 2
    period = choose(c, 2.0, 2.0, 3.0, 4.0)
    over = (torch.remainder(i + j * choose(c, 1.0, -1.0), period) < 0.5).float()
    across, along = mix(a, b, over), mix(b, a, over)
    thread = mix(pick(c.uniform(k=TABLE), i.long() & 31), pick(c.uniform(k=TABLE), j.long() & 31), over)
    height = (1 - across.square()).clamp(min=0).sqrt() * (1 - c.uniform(0.1, 0.5) * along.square())
    fibre = c.anisotropic(c.uniform(0, math.pi), 3.0, 0.7)
    shade = 1 - c.uniform(0.1, 0.7) * (1 - height) + c.uniform(0, 0.3) * (thread - 0.5) + 0.06 * fibre
    warp_colour = c.colour(0.6, 0.15)
    colour = mix(warp_colour, mix(warp_colour, c.colour(0.6), c.uniform(0, 0.7)), over)
    return textured(c, grain(c), (0.02, 0.12), colour) * shade


@family("carpet", "carpet", "rug", "fabric", "surface", edge=0.06)
def carpet(c: Canvas) -> Tensor:
    k = c.log_uniform(12, 45)
    u, v = c.coordinates(angle(c), k, c.uniform(0.002, 0.015))
    first, _, key = voronoi(c, u, v * c.uniform(0.5, 1), c.uniform(0.2, 1))
    loops = standardize(-first + 0.5 * (own(c, key) - 0.5) * c.uniform(0, 2))
    fuzz = c.fractal(c.uniform(0.6, 1.3), c.log_uniform(15, 50))
    side, _ = relief(c, fuzz * 0.01, c.uniform(0, 6.3))
    field = mix(loops, standardize(side) * 0.7 + fuzz * 0.7, c.uniform(0, 1)) + 0.5 * grain(c)
    colour = mix(c.colour(0.5, 0.15, 0.7), c.colour(0.5), c.uniform() * c.chance(0.3) * (own(c, key) > 0.6))
    return textured(c, field, (0.05, 0.28), colour)


@family("felt", "felt", "fibre mat", "nonwoven", "fabric", "surface", edge=0.06)
def felt(c: Canvas) -> Tensor:
    field, main, spread = grain(c) * 0.5, c.uniform(0, math.pi), c.uniform(0.1, 1.6)
    for _ in range(6):
        fibres = c.anisotropic(main + spread * c.normal(), c.log_uniform(0.015, 0.08) * c.size, c.uniform(0.6, 1.1))
        field = field + fibres.clamp(min=c.uniform(-2, 0.5))
    return textured(c, standardize(field) + c.uniform(0, 0.7) * smooth(c, 1.5), (0.05, 0.2), c.colour(0.6))


@family("leather", "leather", "hide", "upholstery", "surface", edge=0.08)
def leather(c: Canvas) -> Tensor:
    k = c.log_uniform(10, 50)
    u, v = c.coordinates(c.uniform(0, 6), k, c.uniform(0.005, 0.03))
    _, edge, key = voronoi(c, u, v * c.uniform(0.6, 1), c.uniform(0.6, 1))
    cells = (edge * c.uniform(1.5, 4)).clamp(0, 1).sqrt()
    creases = 1 - torch.exp(-c.fractal(1.6, c.log_uniform(6, 25)).abs() * c.uniform(2, 6))
    height = mix(cells, creases, choose(c, 0.0, c.uniform(), 1.0)) + 0.1 * own(c, key)
    shade, gleam = lit(c, height * c.uniform(0.1, 0.5) / k, c.uniform(0, 6.3), c.uniform(0, 0.15))
    image = textured(c, c.fractal(1.0), (0.02, 0.12), c.colour(0.45, 0.08, 0.7))
    return image * shade * (1 - c.uniform(0.05, 0.5) * (1 - height)) + gleam
