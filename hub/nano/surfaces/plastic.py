"""Rubber, plastic, glass."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix, standardize
from .fields import angle, choose, grain, lattice, lit, own, radius, relief, smooth, textured, voronoi
from .placing import ground
from .registry import Registry

family = Registry()


@family("rubber", "ribbed rubber mat", "rubber", "mat", "surface", edge=0.1)
def rubber(c: Canvas) -> Tensor:
    k = c.log_uniform(4, 24)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.004))
    ribs = 0.5 + 0.5 * torch.cos(2 * math.pi * u)
    a, b, key = lattice(u, v, choose(c, 0.0, 0.5))
    studs = (1.2 - 3 * radius(a, b)).clamp(0, 0.5)
    diamonds = (0.6 - (a.abs() * c.uniform(0.6, 1.5) + b.abs())).clamp(0, 0.3)
    height = choose(c, ribs.pow(c.log_uniform(0.3, 3)), studs, diamonds * 2)
    shade, gleam = lit(c, height / k * c.uniform(0.15, 0.6), c.uniform(0, 6.3), c.uniform(0, 0.3))
    jitter = 1 + c.uniform(0, 0.12) * (own(c, key) - 0.5) * height
    return textured(c, grain(c), (0.03, 0.15), c.colour(0.4, 0.08, 0.6)) * shade * jitter + 0.5 * gleam


@family("speckled plastic", "speckled plastic", "plastic", "panel", "surface", edge=0.15, hole=0.08)
def speckled_plastic(c: Canvas) -> Tensor:
    k = c.log_uniform(10, 45)
    u, v = c.coordinates(c.uniform(0, 6), k)
    first, _, key = voronoi(c, u, v)
    dots = c.smoothstep((first - own(c, key) * c.uniform(0.1, 0.5)) / k, 2.5) * (own(c, key) < c.uniform(0.1, 1))
    pitted = c.fractal(c.uniform(0.3, 1.2), c.log_uniform(10, 60))
    side, _ = relief(c, pitted * 0.01, c.uniform(0, 6.3))
    image = textured(c, standardize(side), (0.01, 0.12), c.colour(0.45, 0.05, 0.95))
    return mix(image, c.colour(0.5), dots * c.uniform(0.05, 0.7) * c.chance(0.7))


@family("glass", "glass pane", "glass", "transparent part", "surface")
def glass(c: Canvas) -> Tensor:
    u, v = c.coordinates(angle(c), 1.0, c.uniform(0, 0.06))
    image = choose(c, c.colour(0.2, 0.02, 0.9), ground(c)) * (1 + c.uniform(0, 0.12) * smooth(c, 2.4))
    for _ in range(3):
        t = v * c.uniform(0.7, 1.2) + u * c.uniform(-0.5, 0.5) - c.uniform(-0.5, 0.5)
        band = c.smoothstep(t.abs() - c.uniform(0.005, 0.15), c.log_uniform(1.5, 30))
        image = image + band * c.uniform(-0.12, 0.3) * c.chance(0.6)
    lens = torch.exp(-c.fractal(2.6).abs() * c.log_uniform(4, 30)) * c.uniform(0, 0.3) * c.chance(0.4)
    return image + lens + 0.01 * c.uniform() * c.white()
