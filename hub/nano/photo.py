"""What a camera, a lamp and a file format do to any picture, good or bad: variation that is never a defect."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas, mix

Effect = Callable[[Canvas, Tensor], Tensor]


def photograph(canvas: Canvas, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Vary viewpoint, light, colour, focus, noise and compression. The mask follows the geometry only."""
    both = turned(canvas, torch.cat([image, mask], 1))
    both = sometimes(canvas, both, 0.35, moved)
    image, mask = both[:, :3].clone(), (both[:, 3:] > 0.45).float()
    for p, effect in BEFORE_LENS:
        image = sometimes(canvas, image, p, effect)
    framed = sometimes(canvas, torch.cat([image, mask], 1), 0.12, border)
    image, mask = framed[:, :3].clone(), framed[:, 3:]
    for p, effect in AFTER_LENS:
        image = sometimes(canvas, image, p, effect)
    return image.clamp(0, 1), mask


def sometimes(canvas: Canvas, picture: Tensor, p: float, effect: Effect) -> Tensor:
    """Apply an effect to a random share `p` of the pictures only: most effects cost more than choosing. In place."""
    chosen = (canvas.chance(p).view(-1) > 0).nonzero().view(-1)
    if len(chosen):
        part = Canvas(len(chosen), canvas.size, canvas.generator)
        picture[chosen] = effect(part, picture[chosen])
    return picture


# -- geometry ----------------------------------------------------------------------------------------------------------


def turned(canvas: Canvas, picture: Tensor) -> Tensor:
    """One of the eight flips and quarter turns."""
    picture = torch.where(canvas.chance(0.5) > 0, picture.flip(-1), picture)
    picture = torch.where(canvas.chance(0.5) > 0, picture.flip(-2), picture)
    return torch.where(canvas.chance(0.5) > 0, picture.transpose(-1, -2), picture)


def moved(canvas: Canvas, picture: Tensor) -> Tensor:
    """Rotation, zoom and shift, with a mirrored border or one of constant colour, where the mask is zero."""
    wide = canvas.chance(0.25)
    angle = mix(canvas.normal() * 0.06, canvas.uniform(-math.pi, math.pi), wide)
    u, v = canvas.coordinates(angle, scale=canvas.log_uniform(0.75, 1.12))
    shift = canvas.normal(2) * 0.03
    x, y = u + 0.5 + shift[:, :1], v + 0.5 + shift[:, 1:]
    grid = torch.cat([x, y], 1).permute(0, 2, 3, 1) * 2 - 1
    result = F.grid_sample(picture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    inside = 0.5 - torch.maximum((x - 0.5).abs(), (y - 0.5).abs())
    inside = torch.where(canvas.chance(0.3) > 0, canvas.smoothstep(-inside, 1.0), 1.0)
    outer = torch.cat([canvas.colour(0.2, 0.0, 1.0), torch.zeros_like(angle)], 1)
    return mix(outer, result, inside)


def border(canvas: Canvas, picture: Tensor) -> Tensor:
    """A dark or bright strip along one or more sides: the edge of a part, a holder, a scanner's margin."""
    tilt = canvas.normal(2) * 0.02 * canvas.chance(0.5)
    x, y = canvas.x + tilt[:, :1] * (canvas.y - 0.5), canvas.y + tilt[:, 1:] * (canvas.x - 0.5)
    strip = torch.full_like(canvas.x, 9.0)
    first = canvas.integers(0, 4)
    for i, distance in enumerate((x, 1 - x, y, 1 - y)):
        absent = torch.where(first == i, 0.0, canvas.chance(0.75))
        strip = torch.minimum(strip, distance - canvas.log_uniform(0.02, 0.13) + 9 * absent)
    cover = canvas.smoothstep(strip, canvas.uniform(0.8, 3.0))
    extreme = mix(canvas.uniform(0, 0.15), canvas.uniform(0.85, 1), canvas.chance(0.4))
    colour = mix(canvas.colour(), extreme, canvas.chance(0.7))
    image = mix(picture[:, :3], colour, cover)
    return torch.cat([image, picture[:, 3:] * (cover < 0.5)], 1)


# -- light and colour --------------------------------------------------------------------------------------------------


def gradient(canvas: Canvas, image: Tensor) -> Tensor:
    """Uneven lighting: brighter towards one side, towards the middle, or in a wide spot."""
    u, _ = canvas.coordinates(canvas.uniform(0, 2 * math.pi))
    distance = ((canvas.x - canvas.uniform()).square() + (canvas.y - canvas.uniform()).square()).sqrt()
    vignette = -1.6 * ((canvas.x - 0.5).square() + (canvas.y - 0.5).square())
    spot = torch.exp(-(distance / canvas.uniform(0.4, 0.9)).square()) - 0.5
    kind = canvas.integers(0, 4)
    field = torch.where(kind < 2, u, torch.where(kind == 2, vignette, spot))
    return image * (1 + field * canvas.normal() * 0.45).clamp(min=0.2)


def shadow(canvas: Canvas, image: Tensor) -> Tensor:
    """A broad soft-edged band of shade or light, right across the picture."""
    u, _ = canvas.coordinates(canvas.uniform(0, 2 * math.pi), wobble=0.01)
    edge = (u - canvas.uniform(-0.5, 0.5)).abs() - canvas.uniform(0.1, 0.5)
    band = torch.sigmoid(-edge / canvas.uniform(0.03, 0.12))
    return image * (1 + band * canvas.normal() * 0.2).clamp(min=0.3)


def highlight(canvas: Canvas, image: Tensor) -> Tensor:
    """A broad reflection without an outline, elongated, brighter than the surface."""
    angle, stretch = canvas.uniform(0, 2 * math.pi), canvas.log_uniform(1, 4)
    u, v = canvas.coordinates(angle, cx=canvas.uniform(-0.1, 1.1), cy=canvas.uniform(-0.1, 1.1))
    glow = torch.exp(-((u / stretch).square() + v.square()) / canvas.uniform(0.15, 0.4).square())
    return image + glow * canvas.uniform(0.03, 0.25)


def tone(canvas: Canvas, image: Tensor) -> Tensor:
    """Contrast about the mean, brightness, gamma."""
    mean = image.mean((1, 2, 3), keepdim=True)
    contrast = canvas.log_uniform(0.7, 1.6)
    image = (mean + (image - mean) * contrast + canvas.normal() * 0.08).clamp(1e-4, 1)
    return image.pow(canvas.log_uniform(0.65, 1.55))


def tint(canvas: Canvas, image: Tensor) -> Tensor:
    """Another white balance and saturation."""
    grey = image.mean(1, keepdim=True)
    return mix(grey, image, canvas.uniform(0.2, 1.6)) * (1 + canvas.normal(3) * 0.1)


def grey(canvas: Canvas, image: Tensor) -> Tensor:
    """A monochrome camera: the channels in random proportions."""
    share = canvas.uniform(0.1, 1, 3)
    return (image * share / share.sum(1, keepdim=True)).sum(1, keepdim=True).expand_as(image)


def invert(canvas: Canvas, image: Tensor) -> Tensor:
    return 1 - image


# -- lens, sensor and file ---------------------------------------------------------------------------------------------


def focus(canvas: Canvas, image: Tensor) -> Tensor:
    """Defocus, kept mild so that fine defects survive it. Padded: the blur itself is periodic."""
    edge = 8
    padded = F.pad(image, (edge,) * 4, mode="reflect")
    larger = Canvas(canvas.n, canvas.size + 2 * edge, canvas.generator)
    blurred = larger.blur(padded, canvas.log_uniform(0.3, 1.3) * (canvas.size / 112) ** 0.5)
    return blurred[..., edge:-edge, edge:-edge]


def sharpen(canvas: Canvas, image: Tensor) -> Tensor:
    """Unsharp masking, with its halo along edges."""
    low = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return image + (image - low) * canvas.uniform(0.3, 1.6)


def rescale(canvas: Canvas, image: Tensor) -> Tensor:
    """Saved smaller and enlarged again. One scale for the drawn pictures, smooth or blocky for each."""
    share = (0.5, 0.6, 0.75)[int(torch.randint(3, (1,), generator=canvas.generator, device=canvas.device))]
    small = F.interpolate(image, size=int(canvas.size * share), mode="area")
    smooth = F.interpolate(small, size=canvas.size, mode="bilinear", align_corners=False)
    return torch.where(canvas.chance(0.15) > 0, F.interpolate(small, size=canvas.size, mode="nearest"), smooth)


def noise(canvas: Canvas, image: Tensor) -> Tensor:
    """Sensor noise, part of it growing with brightness, grey or coloured."""
    colour = canvas.chance(0.3)
    grains = canvas.white(3)
    grains = mix(grains[:, :1], grains, colour)
    return image + grains * canvas.log_uniform(0.004, 0.04) * mix(torch.ones_like(image), image * 1.5, canvas.uniform())


def rows(canvas: Canvas, image: Tensor) -> Tensor:
    """Fixed-pattern noise of rows or columns, and periodic banding."""
    line = torch.randn(canvas.n, 1, canvas.size, 1, generator=canvas.generator, device=canvas.device)
    phase = canvas.y[..., :1] * canvas.log_uniform(4, 40) + canvas.uniform()
    line = mix(line, torch.sin(2 * math.pi * phase), canvas.chance(0.4)) * canvas.log_uniform(0.004, 0.03)
    row = line.expand_as(canvas.x)
    return image + torch.where(canvas.chance(0.5) > 0, row, row.transpose(2, 3))


def jpeg(canvas: Canvas, image: Tensor) -> Tensor:
    """Blockwise cosine transform with coefficients rounded to steps that grow with frequency; coarser for colour."""
    n, size = canvas.n, canvas.size
    blocks = -(-size // 8)
    index = torch.arange(8, device=canvas.device, dtype=torch.float32)
    basis = torch.cos(math.pi * (2 * index.view(1, 8) + 1) * index.view(8, 1) / 16) / 2
    basis[0] = basis[0] / math.sqrt(2)
    step = (0.008 + 0.006 * (index.view(8, 1) + index.view(1, 8))) * canvas.log_uniform(0.5, 6).view(n, 1, 1, 1, 1, 1)
    luma = image.mean(1, keepdim=True)
    planes = torch.cat([luma, image[:, :1] - luma, image[:, 2:] - luma], 1)
    fill = blocks * 8 - size
    planes = F.pad(planes, (0, fill, 0, fill), mode="replicate").view(n, 3, blocks, 8, blocks, 8).transpose(3, 4)
    step = step * torch.tensor([1.0, 2.0, 2.0], device=canvas.device).view(1, 3, 1, 1, 1, 1)
    rounded = torch.round(basis @ planes @ basis.T / step) * step
    planes = (basis.T @ rounded @ basis).transpose(3, 4).reshape(n, 3, blocks * 8, blocks * 8)[..., :size, :size]
    luma, red, blue = planes.split(1, 1)
    return luma + torch.cat([red, -red - blue, blue], 1)


BEFORE_LENS: tuple[tuple[float, Effect], ...] = (
    (0.4, gradient), (0.12, shadow), (0.12, highlight), (0.35, tint), (0.5, grey), (0.6, tone), (0.1, invert),
)  # fmt: skip
AFTER_LENS: tuple[tuple[float, Effect], ...] = (
    (0.3, focus), (0.15, rescale), (0.5, noise), (0.1, rows), (0.2, sharpen), (0.25, jpeg),
)  # fmt: skip
