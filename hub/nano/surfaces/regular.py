"""Repeated elements: tiles, wires, holes."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .fields import angle, choose, grain, hexagons, lattice, lit, metal, own, radius, textured
from .placing import apart, bevel, box, ground
from .registry import Registry

family = Registry()


@family("tiles", "tiled wall", "tiles", "bricks", "wall", "surface")
def tiles(c: Canvas) -> Tensor:
    k = c.log_uniform(1.5, 9)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.002))
    u, v = u + c.uniform(), v + c.uniform()
    a, b, key = lattice(u / choose(c, 1.0, 1.0, 2.0, 3.0), v, choose(c, 0.0, 0.0, 0.5))
    square = torch.maximum(a.abs(), b.abs()) - 0.5
    ha, hb, hkey = hexagons(u, v)
    six = torch.maximum(ha.abs(), 0.5 * ha.abs() + 0.866 * hb.abs()) - 0.5
    hexagonal = c.chance(0.3) > 0
    d, key = torch.where(hexagonal, six, square) + c.uniform(0.015, 0.07), torch.where(hexagonal, hkey, key)
    tile = c.smoothstep(d / k + 0.001 * c.fractal(1.0), 2.5)
    shade, gleam = lit(c, bevel(d, c.uniform(0.03, 0.25)) / k * c.uniform(0, 0.5), c.uniform(0, 6.3), c.uniform(0, 0.3))
    body = textured(c, mix(grain(c), c.fractal(1.6), c.uniform()), (0.01, 0.2), c.colour(0.7, 0.15, 0.95))
    body = body * shade * (1 + c.uniform(0, 0.4) * (own(c, key) - 0.5)) + gleam
    return mix(textured(c, grain(c), (0.03, 0.15), c.colour(0.2, 0.1, 0.9)), body, tile)


@family("wire grid", "wire mesh", "metal grid", "grid", "mesh")
def wire_grid(c: Canvas) -> Tensor:
    k = c.log_uniform(4, 22)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.002) * c.chance(0.5))
    u = u + v * c.uniform(-0.6, 0.6) * c.chance(0.3)
    a, b, _ = lattice(u, v)
    half = c.uniform(0.06, 0.22)
    x, y = a.abs() / half, b.abs() / half
    weave = 0.3 * torch.cos(math.pi * (u.floor() + v.floor())) * c.chance(0.6)
    wave_x, wave_y = weave * torch.cos(math.pi * b), -weave * torch.cos(math.pi * a)
    lift_x = (1 - x.square()).clamp(min=0).sqrt() + wave_x
    lift_y = (1 - y.square()).clamp(min=0).sqrt() + wave_y
    on_x, on_y = c.smoothstep((x - 1) * half / k, 2), c.smoothstep((y - 1) * half / k, 2)
    top = torch.where((on_x > 0.5) & ((lift_x > lift_y) | (on_y < 0.5)), lift_x, lift_y)
    wires = torch.maximum(on_x, on_y)
    under = ground(c)
    shade, gleam = lit(c, top * wires * half / k * c.uniform(0.2, 0.8), c.uniform(0, 6.3), c.uniform(0, 0.5))
    wire = textured(c, grain(c), (0.02, 0.15), apart(c, under, metal(c, 0.1, 0.9))) * shade + gleam
    return mix(under, wire, wires)


@family("perforated plate", "perforated plate", "perforated metal", "plate", "metal", "surface", edge=0.1)
def perforated_plate(c: Canvas) -> Tensor:
    k = c.log_uniform(3, 16)
    u, v = c.coordinates(angle(c), k, c.uniform(0, 0.003))
    a, b, _ = lattice(u, v, choose(c, 0.0, 0.5))
    ha, hb, _ = hexagons(u, v)
    six = c.chance(0.5) > 0
    a, b = torch.where(six, ha, a), torch.where(six, hb, b)
    size = c.uniform(0.15, 0.38)
    d = choose(c, radius(a, b) - size, radius(a, b) - size, box(a, b, size, size, 0.06), box(a, b, 0.38, 0.14, 0.14))
    hole = c.smoothstep(d / k, 2.5)
    shade, gleam = lit(c, bevel(-d, 0.12) / k * c.uniform(0, 0.6), c.uniform(0, 6.3), 0.2)
    body = textured(c, mix(grain(c), c.anisotropic(angle(c), 6.0, 0.7), c.uniform()), (0.02, 0.15), c.colour(0.2, 0.35))
    inner = choose(c, 0.04, c.uniform(0.02, 0.3), c.uniform(0.8, 1)) * (1 + 0.2 * c.fractal(2.0))
    return mix(body * shade + gleam, inner, hole)
