"""How a kind of defect is registered, and how it is put on a picture."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas
from .drawing import CELLS, mean_in

Draw = Callable[[Canvas, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Defect:
    """One kind of defect, its words for captions, and how to draw it."""

    name: str
    adjectives: tuple[str, ...]  # put before a noun
    phrases: tuple[str, ...]  # put after a noun
    domain: str  # "industrial", "medical" or "any"
    draw: Draw
    crosses: bool = False  # may leave the foreground: a hair hangs over the edge, a bent part moves it


class Registry(dict[str, Defect]):
    """The kinds of a module, in order; calling it gives the decorator that adds one under its function's name."""

    def __call__(
        self, *adjectives: str, phrases: tuple[str, ...], domain: str = "industrial", crosses: bool = False
    ) -> Callable[[Draw], Draw]:
        def register(draw: Draw) -> Draw:
            name = draw.__name__.replace("_", " ")
            self[name] = Defect(name, adjectives, phrases, domain, draw, crosses)
            return draw

        return register


def apply(kind: Defect, canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a defect on every picture. Where nothing visible could be drawn, the original picture and an empty mask come
    back."""
    drawn, weight = kind.draw(canvas, image, foreground)
    allowed = torch.ones_like(foreground) if kind.crosses else foreground
    change = (drawn - image) * allowed
    # A grey picture often comes from a camera or a scanner that knows no colours.
    grey = (image.amax(1) - image.amin(1)).mean((1, 2)).view(-1, 1, 1, 1) < 0.02
    colourless = grey & (canvas.chance(1.0 if kind.domain == "medical" else 0.5) > 0)
    change = torch.where(colourless, change.mean(1, keepdim=True), change)
    weight = weight.clamp(0, 1) * allowed
    mask = (weight > 0.5).float()
    headroom = canvas.uniform(1.05, 1.5)
    # A change that drowns in the texture is first exaggerated; one that does not add up to a visible difference even
    # then (a patch moved within a random texture) gets a brightness of its own, where possible the way it tends to.
    seen = visibility(image, (image + change).clamp(0, 1), mask, foreground)
    change = change * torch.where(seen < 1, (headroom / seen.clamp(min=1e-3)).clamp(1, 3), 1.0)
    faint = (seen < 1).view(-1).nonzero().view(-1)
    if len(faint):
        old, m, fg = image[faint], mask[faint], foreground[faint]
        new = (old + change[faint]).clamp(0, 1)
        missing = (headroom[faint] - visibility(old, new, m, fg)).clamp(0, 1.5)
        level, trend = mean_in(old, m).mean(1, keepdim=True), mean_in(new - old, m).mean(1, keepdim=True)
        way = torch.where((level - 0.5).abs() > 0.35, 0.5 - level, trend + 1e-6).sign()
        change[faint] = (new + way * missing * 0.1 * weight[faint]).clamp(0, 1) - old
        seen[faint] = visibility(old, old + change[faint], m, fg)
    kept = (seen > 0.7) & (mask.sum((2, 3), keepdim=True) >= 3)
    return torch.where(kept, (image + change).clamp(0, 1), image), mask * kept


def visibility(old: Tensor, new: Tensor, mask: Tensor, foreground: Tensor) -> Tensor:
    """(n, 1, 1, 1): how visible the change inside the mask is; 1 is just visible. Colour and texture of cells are
    compared with how much they vary a few cells on anyway, thin things pixel by pixel with the fine noise."""
    area = mask.sum((2, 3), keepdim=True)
    border = F.max_pool2d(mask, 3, 1, 1).sum((2, 3), keepdim=True) - area
    thin = area < 1.2 * border  # under about 2.4 pixels wide
    cells = F.adaptive_avg_pool2d(mask, CELLS)
    ground = F.adaptive_avg_pool2d(foreground, CELLS) + 1e-6
    ratios = []
    for before, after, floor, ceiling in zip(summary(old), summary(new), (0.026, 0.02), (0.14, 0.08), strict=True):
        down, across = (
            mean_in((before - before.roll(3, d)).abs(), ground * ground.roll(3, d)).mean(1, keepdim=True)
            for d in (2, 3)
        )
        change = mean_in((after - before).abs(), cells).amax(1, keepdim=True)
        ratios.append(change / (0.7 * (down + across)).clamp(floor, ceiling))
    fine = (old[..., 1:] - old[..., :-1]).abs().mean((1, 2, 3), keepdim=True)
    change = mean_in((new - old).abs(), mask).amax(1, keepdim=True)
    line = change / (1.5 * fine).clamp(0.035, 0.18)
    return torch.where(thin, line, torch.maximum(*ratios)) * (area > 0)


def summary(image: Tensor) -> tuple[Tensor, Tensor]:
    """Colour, and deviation of the brightness, within each cell."""
    pooled = F.adaptive_avg_pool2d(torch.cat([image, image.mean(1, keepdim=True).square()], 1), CELLS)
    colour = pooled[:, :3]
    return colour, (pooled[:, 3:] - colour.mean(1, keepdim=True).square()).clamp(min=1e-8).sqrt()
