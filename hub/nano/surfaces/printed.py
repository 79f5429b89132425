"""Solar cells, circuit boards, labels."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .fields import (
    TABLE,
    angle,
    cell_key,
    choose,
    fold,
    glyphs,
    grain,
    lattice,
    lit,
    metal,
    own,
    pick,
    profile,
    radius,
    textured,
    voronoi,
)
from .placing import bevel, box
from .registry import Registry

family = Registry()


@family("solar cell", "solar cell", "photovoltaic cell", "silicon wafer", "cell", "surface")
def solar_cell(c: Canvas) -> Tensor:
    a = choose(c, 0.0, math.pi / 2) + 0.01 * c.normal()
    zoom = choose(c, 1.0, c.uniform(0.3, 1.0))
    u, v = c.coordinates(a, 1.0)
    p, q = (u * zoom + 0.5), (v * zoom + c.uniform(0.3, 0.7))
    k = c.log_uniform(5, 25)
    gu, gv = c.coordinates(c.uniform(0, 6), k, c.uniform(0.0, 0.04))
    _, _, key = voronoi(c, gu * c.uniform(0.4, 1), gv, 1.0)
    crystal = (own(c, key) - 0.5) * c.uniform(0.2, 1.6) * c.chance(0.55)
    dark = torch.exp(-c.fractal(1.6).abs() * 3) * c.uniform(0, 1)
    field = crystal - 0.6 * dark * c.chance(0.5) + 0.12 * grain(c) + c.uniform(0, 0.5) * c.fractal(2.0)
    blue = torch.cat([c.uniform(0.03, 0.2), c.uniform(0.08, 0.3), c.uniform(0.2, 0.6)], 1)
    colour = mix(c.uniform(0.1, 0.65).expand(-1, 3, -1, -1), blue, c.chance(0.45))
    image = textured(c, field, (0.15, 0.5), colour)
    sign, lines = choose(c, c.uniform(-0.8, -0.3), c.uniform(0.4, 2)), c.log_uniform(15, 60)
    finger = c.smoothstep(fold(q * lines) / lines / 2 - 0.0025, 2.5) * c.uniform(0, 0.5)
    bars = choose(c, 2.0, 3.0, 3.0, 4.0, 5.0)
    bar = c.smoothstep(fold(p * bars) / bars / 2 - c.uniform(0.005, 0.018), 2)
    image = image * (1 + sign * finger) + 0.1 * (sign > 0) * finger
    image = mix(image, (image.mean((1, 2, 3), keepdim=True) * (1 + sign)).clamp(0, 0.9) * (1 + 0.05 * grain(c)), bar)
    corner = c.uniform(0.0, 0.12) * c.chance(0.4)
    d = torch.maximum(box(p - 0.5, q - 0.5, 0.49, 0.49), (p - 0.5).abs() + (q - 0.5).abs() - 0.98 + corner)
    return mix(choose(c, 0.03, 0.05, 0.9) + 0.01 * c.white(), image, c.smoothstep(d, 2))


@family("circuit board", "printed circuit board", "circuit board", "electronics")
def circuit_board(c: Canvas) -> Tensor:
    k = c.log_uniform(5, 16)
    u, v = c.coordinates(choose(c, 0.0, math.pi / 2) + 0.05 * c.normal() * c.chance(0.5), k)
    i, j = u.floor(), v.floor()
    a, b = u - i - 0.5, v - j - 0.5
    density, table_x, table_y = c.uniform(0.35, 0.75), c.uniform(k=TABLE * TABLE), c.uniform(k=TABLE * TABLE)
    x_edge = torch.where(a > 0, pick(table_x, cell_key(i + 1, j)), pick(table_x, cell_key(i, j))) < density
    y_edge = torch.where(b > 0, pick(table_y, cell_key(i, j + 1)), pick(table_y, cell_key(i, j))) < density
    trace = torch.minimum(torch.where(x_edge, b.abs(), 1.0), torch.where(y_edge, a.abs(), 1.0)) - c.uniform(0.06, 0.2)
    key = cell_key(i, j)
    pad = radius(a, b) - c.uniform(0.2, 0.36)
    pad = torch.where(own(c, key) < c.uniform(0.1, 0.6), pad, 1.0)
    board = choose(c, 0.0, 1.0, 2.0)
    green = torch.cat([c.uniform(0.0, 0.15), c.uniform(0.15, 0.45), c.uniform(0.08, 0.25)], 1)
    colour = torch.where(board < 1.5, green, c.colour(0.5, 0.06, 0.5))
    image = textured(c, c.fractal(1.0), (0.01, 0.08), colour)
    image = mix(image, image * c.uniform(1.15, 1.9) + 0.03, c.smoothstep(trace / k, 2))
    shade, gleam = lit(c, bevel(pad, 0.15) / k * 0.6, c.uniform(0, 6.3), 0.5)
    tin = metal(c, 0.5, 0.9) * shade + gleam
    image = mix(image, tin, c.smoothstep(pad / k, 2))
    image = mix(image, 0.04, c.smoothstep((radius(a, b) - 0.11) / k, 2) * (pad < 0) * c.chance(0.7))
    s = c.uniform(1.4, 3.0)
    pa, pb, pkey = lattice(u / s + c.uniform(), v / s + c.uniform())
    there = own(c, pkey) < c.uniform(0, 0.7)
    wide = c.uniform(0.15, 0.42)
    part = torch.where(there, box(pa, pb, wide, c.uniform(0.15, 0.4), 0.03), 1.0) * s / k
    legs = torch.where(there, box(pa, pb, wide + 0.07, 0.36) * s / k, 1.0)
    comb = c.smoothstep(legs, 2) * c.smoothstep((fold(pb * c.uniform(4, 9)) - 0.5) * 0.12 * s / k, 2)
    image = mix(image, 0.75 * (1 + 0.2 * c.fractal(1.0)), comb)
    ink = glyphs(c, pa * 8, pb * 8, 0.3)
    chip = mix(
        c.colour(0.5, 0.04, 0.5) * (1 + 0.06 * grain(c)), c.uniform(0.5, 0.9), c.smoothstep(ink * s / k / 8) * 0.7
    )
    return mix(image, chip, c.smoothstep(part, 2))


@family("printed label", "printed label", "label", "printed text", "print")
def printed_label(c: Canvas) -> Tensor:
    u, v = c.coordinates(choose(c, 0.0, 0.1 * c.normal(), angle(c)), 1.0, c.uniform(0, 0.004))
    paper_colour, ink_colour = c.colour(0.4, 0.5, 0.98), c.colour(0.6, 0.02, 0.3)
    swap = c.chance(0.3)
    image = textured(c, c.fractal(c.uniform(0.5, 1.5)), (0.01, 0.06), mix(paper_colour, ink_colour, swap))
    ink = mix(ink_colour, paper_colour, swap) * (1 + 0.05 * grain(c))
    bar_u = profile(c, u * c.uniform(0.4, 1), 0.3)
    top, height = c.uniform(-0.5, 0.1), c.uniform(0.2, 0.5)
    block = c.smoothstep(box(u, v - top - height / 2, c.uniform(0.2, 0.5), height / 2, 0.01), 2)
    mark = c.smoothstep((radius(u - c.uniform(-0.4, 0.4), v - top) - c.uniform(0.08, 0.2)).abs() - 0.02, 2)
    fill = choose(c, c.smoothstep(-bar_u * 0.05), 0.4, mark, mark)
    image = mix(image, mix(ink, c.colour(0.9), c.chance(0.4)), block * fill * c.chance(0.6))
    for size in (c.log_uniform(6, 16), c.log_uniform(12, 34)):
        shift = c.uniform(-0.3, 0.3)
        letters = c.smoothstep(glyphs(c, u * size, v * size, 0.18) / size, 1.5)
        rows = (pick(c.uniform(k=TABLE), (v * size / 1.6).floor().long() & 31) < 0.6).float()
        margin = c.smoothstep(box(u - shift, v, c.uniform(0.2, 0.6), c.uniform(0.1, 0.5)), 1)
        image = mix(image, ink, letters * rows * margin * (1 - block))
    frame = c.smoothstep(box(u, v, c.uniform(0.35, 0.5), c.uniform(0.3, 0.5), 0.03).abs() - 0.005, 1.5)
    return mix(image, ink, frame * c.chance(0.3))
