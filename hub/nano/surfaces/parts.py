"""Single objects on a ground."""

import math

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .fields import (
    angle,
    cell_key,
    choose,
    fold,
    glyphs,
    grain,
    hexagons,
    lattice,
    lit,
    metal,
    own,
    pick,
    profile,
    radius,
    textured,
    turn,
    voronoi,
)
from .placing import apart, bevel, box, ground, place, put
from .registry import Registry

family = Registry()


@family("washer", "metal washer", "ring", "washer", "part", "object")
def washer(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c)
    r, hole = radius(f.u, f.v), c.uniform(0.25, 0.85)
    d = torch.maximum(r - 1, hole - r)
    lathe = profile(c, r * c.uniform(0.5, 2), 0.3) + c.uniform(0, 1) * grain(c)
    fan = profile(c, turn(f.u, f.v) + c.uniform(), 2.0, 1.0)
    shade, gleam = f.lit(bevel(d, (1 - hole) * c.uniform(0.1, 0.9)), c.uniform(0, 0.6))
    base = apart(c, under, choose(c, metal(c), metal(c), c.colour(0.6, 0.04, 0.7)))
    part = textured(c, lathe, (0.01, 0.1), base) * (1 + c.uniform(0, 0.25) * fan) * shade + gleam
    return put(c, under, part, f.inside(d))


@family("nut", "hexagon nut", "metal nut", "nut", "part", "object")
def nut(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.35, 0.95)
    r, u, v = radius(f.u, f.v), f.u.abs(), f.v.abs()
    d = torch.maximum(v, 0.866 * u + 0.5 * v) - 0.866
    hole = c.uniform(0.35, 0.55)
    shade, gleam = f.lit(bevel(torch.maximum(d, r - 0.95), c.uniform(0.05, 0.2)) * 0.6, c.uniform(0.1, 0.6))
    rim = f.inside((r - hole - 0.06).abs() - 0.05, 3) * c.uniform(-0.3, 0.4)
    base = apart(c, under, metal(c, 0.2, 0.8))
    part = textured(c, grain(c) + profile(c, f.v * 0.3, 0.5), (0.02, 0.12), base) * shade * (1 + rim) + gleam
    thread = 0.08 + 0.15 * fold(r * 9 + turn(f.u, f.v)) * c.uniform()
    inside = f.inside(r - hole)
    part = mix(part, mix(thread, under, f.inside(r - hole + 0.1) * c.chance(0.6)), inside)
    return put(c, under, part, f.inside(d) * (1 - inside * 0.999))


@family("capsule", "drug capsule", "capsule", "pill", "object")
def capsule(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.5, 1.0, 0.3, 0.4)
    half = c.uniform(0.24, 0.42)
    d = box(f.u, f.v, 1.0, half, half)
    shade, gleam = f.lit(bevel(d, half) * c.uniform(0.3, 0.8), c.uniform(0.2, 0.9))
    seam = c.uniform(-0.25, 0.25)
    cap = f.inside(f.u - seam)
    colour = mix(apart(c, under, c.colour(0.7, 0.2, 0.95)), c.colour(0.7, 0.1, 0.95), cap)
    part = textured(c, grain(c), (0.005, 0.06), colour) * shade + 0.6 * gleam
    part = part * (1 - c.uniform(0, 0.4) * f.inside((f.u - seam).abs() - 0.012))
    letter = half * c.uniform(0.3, 0.7)
    ink = f.inside(glyphs(c, f.u / letter + 0.5, f.v / letter + 0.8, 0.1) * letter)
    ink = ink * f.inside(box(f.u - c.uniform(-0.4, 0.4), f.v, c.uniform(0.2, 0.5), half * 0.45)) * c.chance(0.5)
    return put(c, under, mix(part, c.colour(0.5, 0.02, 0.9), ink * 0.8), f.inside(d))


@family("pill", "pill", "tablet", "drug", "object")
def pill(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.4, 0.95, 0.3, 0.7)
    aspect = choose(c, 1.0, c.uniform(1, 2.2))
    d = (f.u.abs().pow(2.2) + (f.v.abs() * aspect).pow(2.2) + 1e-6).pow(1 / 2.2) - 1
    d = d / aspect.sqrt()
    letter = c.uniform(0.16, 0.35)
    stamp = glyphs(c, f.u / letter + 0.5, f.v / letter + 0.8, 0.1) * letter
    stamp = torch.maximum(stamp, box(f.u, f.v, letter * choose(c, 0.45, 1.45), letter * 0.79))
    score = torch.where(c.chance(0.3) > 0, f.u.abs() - 0.035, torch.where(c.chance(0.6) > 0, stamp, 1.0))
    pressed = f.inside(score, 3)
    height = bevel(d, c.uniform(0.15, 0.7)) * c.uniform(0.3, 0.9) - 0.05 * pressed
    shade, gleam = f.lit(height, c.uniform(0, 0.5))
    k = c.log_uniform(15, 50)
    first, _, key = voronoi(c, c.x * k, c.y * k)
    dots = c.smoothstep((first - 0.35 * own(c, key)) / k, 2.5) * (own(c, key) < 0.4) * c.chance(0.35)
    part = textured(c, grain(c), (0.01, 0.08), apart(c, under, c.colour(0.7, 0.35, 0.98)))
    part = mix(part, c.colour(0.9), dots * c.uniform(0.2, 0.7)) * shade * (1 - 0.15 * pressed) + gleam
    return put(c, under, part, f.inside(d))


@family("screw", "metal screw", "screw", "bolt", "part", "object")
def screw(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.6, 1.0, 0.12, 0.35)
    u, v = f.u, f.v
    half, turns = c.uniform(0.09, 0.18), c.uniform(8, 20)
    neck = c.uniform(-0.7, 0.1)
    threaded = f.inside(neck - u, 3)
    phase = u * turns + v * c.uniform(0.5, 1.5)
    tip = ((1 - u) * c.uniform(1.5, 6)).clamp(0.05, 1)
    width = half * tip * (1 - threaded * c.uniform(0.1, 0.3) * fold(u * turns + 0.5 * (v > 0)))
    shaft = torch.maximum(v.abs() - width, torch.maximum(-0.8 - u, u - 1))
    head_half, head_end = half * c.uniform(1.6, 2.3), -1 + c.uniform(0.12, 0.3)
    cone = mix(head_half, half + (head_half - half) * ((head_end - u) / (head_end + 1)).clamp(0, 1), c.chance(0.5))
    head = torch.maximum(v.abs() - cone, torch.maximum(-1 - u, u - head_end))
    d = torch.minimum(shaft, head)
    side = torch.where(head < shaft, v / cone, v / half)
    phi = side * 1.4 + c.uniform(-0.8, 0.8)
    round_ = 0.35 + 0.65 * torch.cos(phi) + c.uniform(0, 0.5) * torch.exp(-(phi - 0.3).square() * 20)
    ridges = 1 + threaded * (head > 0) * c.uniform(0.2, 0.6) * torch.cos(2 * math.pi * phase)
    base = apart(c, under, metal(c, 0.2, 0.8))
    part = textured(c, grain(c), (0.02, 0.12), base) * round_ * ridges
    return put(c, under, part, f.inside(d))


@family("bottle", "bottle mouth", "bottle rim", "bottle", "glass", "object")
def bottle(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.7, 1.05, 0.0)
    r, t = radius(f.u, f.v), turn(f.u, f.v)
    rings = profile(c, r * 0.5, c.uniform(1.2, 2.2), 3.0)
    around = profile(c, t + c.uniform(), 1.6, 1.0)
    glints = (profile(c, t + 0.4 * r, 1.2, 4.0) - 1).clamp(min=0) * f.inside((r - c.uniform(0.5, 0.95)).abs() - 0.05, 4)
    lip, bore = c.uniform(0.75, 0.95), c.uniform(0.3, 0.65)
    wall = c.colour(0.8, 0.05, 0.6) * (1 + c.uniform(0.2, 0.7) * rings + c.uniform(0, 0.3) * around) + 0.5 * glints
    wall = wall + c.uniform(0.1, 0.5) * f.inside((r - lip).abs() - c.uniform(0.01, 0.05), 3)
    inner = choose(c, 0.03, c.uniform(0.02, 0.3), c.uniform(0.5, 0.95)) * (1 + 0.1 * c.fractal(2.0) + 0.3 * r)
    part = mix(wall, inner, f.inside(r - bore, 3)) * (1 + 0.02 * grain(c))
    return put(c, under, part, f.inside(r - 1))


@family("cable", "cable cross section", "cable", "wire bundle", "object")
def cable(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.75, 1.05, 0.0)
    r = radius(f.u, f.v)
    sheath = c.colour(0.4, 0.1, 0.9)
    part = textured(c, grain(c), (0.02, 0.1), sheath) * (1 + c.uniform(0, 0.4) * f.inside((r - 0.95).abs() - 0.03, 4))
    count = choose(c, 2.0, 3.0, 3.0, 4.0, 7.0)
    arm = 0.46 + 0.06 * (count > 3)
    size = torch.minimum(c.uniform(0.36, 0.42), 0.94 * arm * torch.sin(math.pi / count))
    t = turn(f.u, f.v) * count
    which = torch.remainder(t.floor(), count).long()
    phi = (t - t.floor() - 0.5) / count * 2 * math.pi
    a, b = r * phi.cos() - arm, r * phi.sin()
    colours = torch.cat([c.colour(1.0, 0.1, 0.9) for _ in range(7)], 1)
    skin_ = torch.cat([pick(colours[:, i::3], which) for i in range(3)], 1)
    d = radius(a, b) - size
    part = mix(part, skin_ * (1 + 0.04 * grain(c)), f.inside(d))
    part = part * (1 - 0.5 * f.inside(d.abs() - 0.015, 4))
    k = c.uniform(6, 16)
    ha, hb, key = hexagons(f.u * k + 0.2 * c.fractal(2.2), f.v * k + 0.2 * c.fractal(2.2))
    strand = (1.15 - radius(ha, hb) * 1.9).clamp(0, 1) * (0.5 + own(c, key))
    copper = torch.tensor([0.85, 0.55, 0.35], device=c.device).view(1, 3, 1, 1)
    core = mix(copper, c.uniform(0.5, 0.9).expand(-1, 3, -1, -1), c.chance(0.3)) * (0.1 + strand)
    part = mix(part, core, f.inside(d + size * c.uniform(0.25, 0.5) + 0.02 * c.fractal(2.0), 3))
    return put(c, under, part, f.inside(r - 1 + 0.01 * c.fractal(2.2)))


@family("zipper", "zipper", "zip fastener", "fastener", "object")
def zipper(c: Canvas) -> tuple[Tensor, Tensor]:
    k = c.log_uniform(7, 22)
    u, v = c.coordinates(choose(c, 0.0, math.pi / 2, angle(c)), 1.0, c.uniform(0, 0.006))
    v = v - c.uniform(-0.15, 0.15)
    half, w = c.uniform(0.07, 0.16), 1.5 / k
    side = torch.sign(v + 1e-6)
    p = u * k + 0.25 * side
    a = (p - p.floor() - 0.5) / k
    tooth = box(a, v.abs() - half * 0.42, c.uniform(0.2, 0.3) / k, half * 0.58, w * 0.1)
    weave = torch.cos(u * c.log_uniform(150, 400)) * torch.cos(v * c.log_uniform(150, 400))
    tape = textured(c, weave + 0.5 * grain(c), (0.05, 0.2), c.colour(0.6, 0.05, 0.7))
    ridge = 1 + c.uniform(-0.4, 0.4) * c.smoothstep((v.abs() - half * c.uniform(1.2, 1.9)).abs() - 0.012, 4)
    shade, gleam = lit(c, bevel(tooth, 0.25 / k) * 0.9, c.uniform(0, 6.3), c.uniform(0.1, 0.6))
    colour = choose(c, metal(c), c.colour(0.5, 0.05, 0.9))
    jitter = 1 + 0.15 * (own(c, cell_key(p.floor(), side)) - 0.5)
    part = mix(
        tape * ridge * (1 - 0.5 * c.smoothstep(tooth, 8)), colour * shade * jitter + gleam, c.smoothstep(tooth, 2)
    )
    mask = c.smoothstep(v.abs() - half * c.uniform(2.2, 4.5), 2)
    return put(c, ground(c), part, mask)


@family("transistor", "transistor", "electronic component", "component", "part", "object")
def transistor(c: Canvas) -> tuple[Tensor, Tensor]:
    k = c.uniform(6, 14)
    a, b, _ = lattice(c.x * k, c.y * k)
    holes = c.smoothstep((radius(a, b) - 0.2) / k, 2) * c.chance(0.5)
    under = ground(c) * (1 - 0.7 * holes)
    f = place(c, 0.6, 1.0, 0.1, 0.6)
    w, top, bottom = c.uniform(0.35, 0.5), c.uniform(-0.55, -0.3), c.uniform(0.05, 0.25)
    mid = (top + bottom) / 2
    body = box(f.u, f.v - mid, w, (bottom - top) / 2, 0.03)
    tab = torch.maximum(box(f.u, f.v - top, w * 0.98, 0.35, 0.08), 0.13 - radius(f.u, f.v - top + 0.2))
    tab = torch.where(c.chance(0.6) > 0, tab, 1.0)
    legs = choose(c, 2.0, 3.0, 3.0, 4.0)
    pitch = w * 1.7 / legs
    x = f.u + pitch * 0.5 * (torch.remainder(legs, 2) < 0.5)
    x = x - (x / pitch).round().clamp(-1, 1) * pitch
    leg = torch.maximum(box(x, f.v - 0.6, pitch * c.uniform(0.15, 0.28), 0.4), f.u.abs() - w)
    tin = metal(c, 0.5, 0.9) * (1 + 0.06 * grain(c))
    glow, gleam = f.lit(bevel(torch.minimum(leg, tab), 0.06), 0.5)
    shade, soft = f.lit(bevel(body, 0.12) * 0.6, 0.25)
    letter = c.uniform(0.1, 0.18)
    ink = f.inside(glyphs(c, f.u / letter, (f.v - mid) / letter + 0.8, 0.15) * letter, 1.5)
    ink = ink * f.inside(box(f.u, f.v - mid, w * 0.8, (bottom - top) * 0.33))
    plastic = textured(c, grain(c), (0.03, 0.12), c.colour(0.15, 0.05, 0.25)) * shade + soft
    part = mix(tin * glow + gleam, mix(plastic, 0.7, ink * 0.6), f.inside(body))
    return put(c, under, part, f.inside(torch.minimum(body, torch.minimum(tab, leg))))


@family("food", "piece of food", "food", "snack", "object")
def food(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.45, 1.0, 0.35, 0.8)
    r, t = radius(f.u, f.v * c.uniform(1, 1.5)), turn(f.u, f.v)
    d = r - 0.85 - c.uniform(0.01, 0.07) * profile(c, t + own(c, f.key), 1.6, 1.5).clamp(-2, 2)
    wavy = c.fractal(c.uniform(1.5, 2.4), c.log_uniform(2, 20)) * c.log_uniform(0.0006, 0.012)
    ridges = torch.cos(f.u * c.uniform(15, 40)) * 0.02 * c.chance(0.25)
    shade, gleam = f.lit(bevel(d, c.uniform(0.1, 0.85)) * c.uniform(0.3, 0.9) + wavy / f.r + ridges, c.uniform(0, 0.4))
    stripes = profile(c, t + 0.1 * c.fractal(2.0), 0.8, 4.0) * c.chance(0.3)
    field = c.fractal(c.uniform(0.5, 1.5)) + stripes
    warm = torch.cat([c.uniform(0.5, 0.95), c.uniform(0.3, 0.75), c.uniform(0.1, 0.45)], 1)
    colour = apart(c, under, mix(warm, c.colour(0.6, 0.2), c.chance(0.25)))
    part = textured(c, field, (0.03, 0.2), colour) * shade + gleam
    spot = f.inside(radius(f.u - c.uniform(-0.3, 0.3), f.v - c.uniform(-0.3, 0.3)) - c.uniform(0.04, 0.3), 8)
    return put(c, under, mix(part, part * c.uniform(0.2, 1.3), spot * c.chance(0.35)), f.inside(d))


@family("brush", "brush head", "bristles", "brush", "object")
def brush(c: Canvas) -> tuple[Tensor, Tensor]:
    under, f = ground(c), place(c, 0.7, 1.1, 0.0, 0.5)
    half = c.uniform(0.3, 0.6)
    d = box(f.u, f.v, 1.0, half, half * c.uniform(0.3, 1))
    k = c.uniform(2.5, 6)
    a, b, key = lattice(f.u * k, f.v * k, choose(c, 0.0, 0.5))
    a, b = a + (own(c, key) - 0.5) * 0.15, b + (own(c, key) - 0.5) * 0.15
    tuft = f.inside((radius(a, b) - c.uniform(0.33, 0.42)) / k, 4) * f.inside(d + 0.08, 2)
    m = c.log_uniform(25, 60)
    first, _, hair = voronoi(c, c.x * m, c.y * m)
    tips = (1 - first * 1.3).clamp(0, 1) * (0.6 + 0.5 * own(c, hair))
    pair = mix(c.colour(1.0, 0.4, 0.95), c.colour(1.0, 0.4, 0.95), (own(c, key) > 0.5).float())
    shade, gleam = f.lit(bevel(d, 0.15), 0.3)
    body = textured(c, grain(c), (0.01, 0.06), apart(c, under, c.colour(0.8, 0.2, 0.95))) * shade + gleam
    return put(c, under, mix(body * (1 - 0.4 * tuft), pair * (0.3 + 0.9 * tips), tuft), f.inside(d))
