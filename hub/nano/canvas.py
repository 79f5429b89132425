"""Batched drawing primitives: seeded random numbers, noise fields, blurs and distances, on any device.

Everything works on `n` pictures at once, each with its own parameters: a parameter has shape (n, 1, 1, 1), a field
(n, 1, size, size), a picture (n, 3, size, size) in [0, 1]. Lengths are fractions of the picture's side unless a name
says pixels. The same seed and device give the same pictures.
"""

import math
from typing import cast

import torch
from torch import Tensor


class Canvas:
    """`n` square pictures of `size` pixels, with the random numbers and coordinates to draw them."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator, self.device = n, size, generator, generator.device
        axis = (torch.arange(size, device=self.device) + 0.5) / size
        self.x = axis.view(1, 1, 1, size).expand(n, 1, size, size)
        self.y = axis.view(1, 1, size, 1).expand(n, 1, size, size)
        fy = torch.fft.fftfreq(size, device=self.device).view(1, 1, size, 1)
        fx = torch.fft.rfftfreq(size, device=self.device).view(1, 1, 1, size // 2 + 1)
        self._frequency = (fx.square() + fy.square()).sqrt()  # cycles per pixel

    # -- random numbers ------------------------------------------------------------------------------------------

    def uniform(self, low: float | Tensor = 0.0, high: float | Tensor = 1.0, k: int = 1) -> Tensor:
        """(n, k, 1, 1) numbers, uniform in [low, high)."""
        return low + (high - low) * torch.rand(self.n, k, 1, 1, generator=self.generator, device=self.device)

    def log_uniform(self, low: float, high: float, k: int = 1) -> Tensor:
        """(n, k, 1, 1) positive numbers whose logarithm is uniform: for sizes and frequencies."""
        return torch.exp(self.uniform(math.log(low), math.log(high), k))

    def normal(self, k: int = 1) -> Tensor:
        """(n, k, 1, 1) standard normal numbers."""
        return torch.randn(self.n, k, 1, 1, generator=self.generator, device=self.device)

    def chance(self, p: float) -> Tensor:
        """(n, 1, 1, 1) of 0 or 1, 1 with probability p."""
        return (self.uniform() < p).float()

    def integers(self, low: int, high: int, k: int = 1) -> Tensor:
        """(n, k, 1, 1) int64, uniform in [low, high)."""
        shape = (self.n, k, 1, 1)
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def white(self, channels: int = 1) -> Tensor:
        """(n, channels, size, size) independent standard normal pixels."""
        shape = (self.n, channels, self.size, self.size)
        return torch.randn(shape, generator=self.generator, device=self.device)

    # -- fields --------------------------------------------------------------------------------------------------

    def fractal(self, slope: float | Tensor = 2.0, low_cut: float | Tensor = 0.0, channels: int = 1) -> Tensor:
        """Noise of amplitude spectrum 1 / (f + low_cut)^slope, zero mean and unit deviation. (n, channels, size, size)

        slope 0 is white, 1 is cloudy with fine grain, 2 and more is smooth; `low_cut` in cycles per picture removes
        structures larger than 1 / low_cut of the side.
        """
        f = (self._frequency * self.size).clamp(min=1.0)
        weight = (f + low_cut) ** -slope if isinstance(slope, Tensor) else (f + low_cut).pow(-slope)
        field = torch.fft.irfft2(torch.fft.rfft2(self.white(channels)) * weight, s=(self.size, self.size))
        return standardize(field)

    def blur(self, x: Tensor, sigma_px: float | Tensor) -> Tensor:
        """Gaussian blur (periodic at the border) of standard deviation `sigma_px` pixels, one per picture if wished."""
        response = torch.exp(-2 * (math.pi * sigma_px * self._frequency) ** 2)
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=(self.size, self.size))

    def anisotropic(self, angle: Tensor, along: float | Tensor, across: float | Tensor, channels: int = 1) -> Tensor:
        """Noise drawn out in direction `angle` (radians): Gaussian-filtered white noise with standard deviations
        `along` and `across` in pixels. Zero mean, unit deviation. For brushed metal, wood grain and fibres."""
        fy = torch.fft.fftfreq(self.size, device=self.device).view(1, 1, self.size, 1)
        fx = torch.fft.rfftfreq(self.size, device=self.device).view(1, 1, 1, self.size // 2 + 1)
        u = fx * torch.cos(angle) + fy * torch.sin(angle)
        v = -fx * torch.sin(angle) + fy * torch.cos(angle)
        response = torch.exp(-2 * math.pi**2 * ((along * u) ** 2 + (across * v) ** 2))
        field = torch.fft.irfft2(torch.fft.rfft2(self.white(channels)) * response, s=(self.size, self.size))
        return standardize(field)

    def coordinates(
        self,
        angle: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        wobble: Tensor | float = 0.0,
        cx: Tensor | float = 0.5,
        cy: Tensor | float = 0.5,
    ) -> tuple[Tensor, Tensor]:
        """Coordinates (u, v) about (cx, cy), rotated by `angle`, multiplied by `scale`, and bent by smooth noise of
        amplitude `wobble` (same unit as the picture's side)."""
        angle = torch.as_tensor(angle, device=self.device)
        x, y = self.x - cx, self.y - cy
        if isinstance(wobble, Tensor) or wobble:
            x, y = x + wobble * self.fractal(2.5), y + wobble * self.fractal(2.5)
        u = x * torch.cos(angle) + y * torch.sin(angle)
        v = -x * torch.sin(angle) + y * torch.cos(angle)
        return u * scale, v * scale

    def smoothstep(self, distance: Tensor, softness_px: float | Tensor = 1.0) -> Tensor:
        """1 inside (distance < 0), 0 outside, with an edge about `softness_px` pixels wide: an antialiased shape."""
        return torch.sigmoid(-distance * self.size * 4 / softness_px)

    def polyline(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of each pixel to a polyline, and the position of the nearest point along it in [0, 1].

        `points` is (n, k, 2) with x, y as fractions of the side. Both results are (n, 1, size, size).
        """
        best = torch.full((self.n, 1, self.size, self.size), 9.0, device=self.device)
        where = torch.zeros_like(best)
        segments = points.shape[1] - 1
        for i in range(segments):
            ax, ay = (points[:, i, j].view(-1, 1, 1, 1) for j in (0, 1))
            bx, by = (points[:, i + 1, j].view(-1, 1, 1, 1) for j in (0, 1))
            dx, dy = bx - ax, by - ay
            t = (((self.x - ax) * dx + (self.y - ay) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
            d = ((self.x - ax - t * dx).square() + (self.y - ay - t * dy).square()).sqrt()
            nearer = d < best
            best = torch.where(nearer, d, best)
            where = torch.where(nearer, (i + t) / segments, where)
        return best, where

    def walk(self, steps: int, length: Tensor, bend: float | Tensor, start: Tensor, angle: Tensor) -> Tensor:
        """Points (n, steps + 1, 2) of a wandering path: total `length`, first direction `angle`, direction changing
        by a normal number of deviation `bend` radians a step; `start` is (n, 2, 1, 1)."""
        turns = self.normal(steps) * bend
        heading = (angle + turns.cumsum(1)).view(self.n, steps)
        step = (length / steps).view(self.n, 1)
        moves = torch.stack([heading.cos() * step, heading.sin() * step], dim=-1)
        return start.view(self.n, 1, 2) + torch.cat([torch.zeros_like(moves[:, :1]), moves.cumsum(1)], dim=1)

    def colour(self, saturation: float = 0.35, low: float = 0.1, high: float = 0.9) -> Tensor:
        """(n, 3, 1, 1) random colours: a uniform brightness in [low, high] with a tint; a third of them plain grey."""
        grey = self.uniform(low, high)
        tint = self.uniform(-1, 1, 3) * saturation * self.uniform() * (1 - self.chance(0.33))
        return (grey + tint * torch.minimum(grey, 1 - grey) * 2).clamp(0, 1)


def standardize(field: Tensor) -> Tensor:
    """Zero mean and unit deviation over each channel of each picture."""
    field = field - field.mean((-2, -1), keepdim=True)
    return field / (field.square().mean((-2, -1), keepdim=True).sqrt() + 1e-6)  # several times faster than std


def mix(a: Tensor | float, b: Tensor | float, weight: Tensor | float) -> Tensor:
    """a where weight is 0, b where it is 1; at least one of the three is a tensor."""
    return cast(Tensor, a + (b - a) * weight)
