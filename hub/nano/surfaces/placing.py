"""Objects on a ground: frames, shadows, shapes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas, mix
from .fields import angle, choose, lattice, lit, own, profile


@dataclass
class Frame:
    """Coordinates in which an object has half-length 1, for one object or a lattice of them."""

    c: Canvas
    u: Tensor
    v: Tensor
    r: Tensor  # half-length as a fraction of the side
    key: Tensor  # which of the objects
    light: Tensor

    def inside(self, distance: Tensor, softness_px: float = 2.0) -> Tensor:
        return self.c.smoothstep(distance * self.r, softness_px)

    def lit(self, height: Tensor, gloss: Tensor | float = 0.3) -> tuple[Tensor, Tensor]:
        """As `lit`, of a height in the object's own unit."""
        return lit(self.c, height * self.r, self.light, gloss)


def place(c: Canvas, low: float = 0.4, high: float = 1.0, several: float = 0.25, thin: float = 1.0) -> Frame:
    """An object's frame; `several` is the chance of 2 x 2 or 3 x 3 objects, `thin` its width over its length."""
    many = c.chance(several) * choose(c, 1.0, 1.0, 2.0) + 1
    one = (many < 1.5).float()
    r = mix(c.uniform(0.32, 0.46) / many, c.uniform(low, high) / 2, one)
    a, b, key = lattice(c.x * many, c.y * many)
    room = mix(0.5 / many - r, (0.5 - r * (0.5 + 0.5 * thin)).clamp(min=0) + 0.06, one) * c.uniform(0, 1)
    ox, oy = ((own(c, key) * 2 - 1) * room for _ in range(2))
    base = choose(c, c.uniform(0, 2 * math.pi), angle(c), angle(c))
    turn = base + (own(c, key) - 0.5) * choose(c, 0.0, 0.2, 2 * math.pi) * (1 - one)
    x, y = (a / many - ox) / r, (b / many - oy) / r
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    return Frame(c, u, v, r, key, c.uniform(0, 2 * math.pi))


def ground(c: Canvas) -> Tensor:
    """What objects lie on: dark, bright or middling; plain, clouded, grainy or streaked."""
    level = choose(c, c.uniform(0.02, 0.2), c.uniform(0.2, 0.7), c.uniform(0.7, 0.97))
    colour = (level + c.normal(3) * 0.06 * c.chance(0.6)).clamp(0.01, 0.99)
    u, v = c.coordinates(angle(c), 1.0)
    noise = c.fractal(choose(c, 2.0, c.uniform(0.1, 1.1)))
    streaks = profile(c, v * c.log_uniform(0.5, 2), c.uniform(0.3, 1)) * c.chance(0.2)
    return colour * (1 + (noise + streaks) * c.log_uniform(0.01, 0.13) + u * c.uniform(-0.4, 0.4))


def apart(c: Canvas, under: Tensor, colour: Tensor, least: float = 0.18) -> Tensor:
    """The colour, moved in brightness where the ground has nearly the same."""
    base = under.mean((1, 2, 3), keepdim=True)
    gap = colour.mean(1, keepdim=True) - base
    side = torch.where((gap > 0) & (base < 0.8) | (base < 0.2), 1.0, -1.0)
    return (colour + side * (least - gap * side).clamp(min=0)).clamp(0.02, 0.98)


def put(c: Canvas, under: Tensor, part: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The part over the ground, with a soft contact shadow."""
    shadow = c.blur(mask, c.uniform(0.01, 0.05) * c.size)
    strength = c.uniform(0, 0.6) * c.chance(0.7)
    return mix(under * (1 - strength * shadow), part, mask), mask


def box(u: Tensor, v: Tensor, w: Tensor | float, h: Tensor | float, corner: Tensor | float = 0.0) -> Tensor:
    """Signed distance to a box of half-width w and half-height h with rounded corners."""
    x, y = u.abs() - w + corner, v.abs() - h + corner
    return (x.clamp(min=0).square() + y.clamp(min=0).square()).sqrt() + torch.maximum(x, y).clamp(max=0) - corner


def bevel(distance: Tensor, width: Tensor | float) -> Tensor:
    """Height of a body with the given signed distance whose edge is rounded over `width`."""
    t = (-distance / width).clamp(0.0, 1)
    return (1 - (1 - t).square() + 1e-4).sqrt() * width
