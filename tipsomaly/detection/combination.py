"""How what the prompts say and what a memory of normal pictures says go together.

Each speaks of how far something is from what it says of the normal pictures themselves, which are left out of the
memory one at a time: in standard deviations of that. So both share a scale, and their weighted sum, again of deviation
1 if they are independent (Stouffer's method for two probabilities of being normal), is the evidence.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tipsomaly.detection.detector import Evidence

Use = Literal["prompts", "memory", "both"]
USES: tuple[Use, ...] = ("prompts", "memory", "both")

GLOBAL = 0.5
"""The weight of a global token's deviation: its logit has a spread of few pictures, the patches' one of thousands."""


class Scale(NamedTuple):
    """Mean and standard deviation of something among normal pictures."""

    mean: float
    deviation: float

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation


class Scales(NamedTuple):
    """Of the normal pictures: of the logits of p_a of both global tokens and of the patches, and of the patches'
    distances to the memory."""

    object: Scale
    spatial: Scale
    prompts: Scale
    memory: Scale


def squash(deviations: Tensor) -> Tensor:
    """Standard deviations above normal -> (0, 1): 0.12 at the mean, 0.27 at 3, 0.5 at 6, 0.88 at 12. Nearly linear
    where it matters: what is far above normal must stay in order, and the sum of two must stay one of evidence."""
    return torch.sigmoid((deviations - 6) / 3)


def combine(images: Tensor, patches: Tensor, distances: Tensor, scales: Scales, weight: float, use: Use) -> Evidence:
    """p_a of the global tokens (B, 2) and of the patches (B, h, w) by the prompts, and the patches' distances (B, h, w)
    -> the evidence of the prompts alone, as it was; of the memory alone, which has no global score; or of both."""
    if use == "prompts":
        return Evidence(images, patches)
    memory = scales.memory(distances)
    if use == "memory":
        return Evidence(torch.zeros_like(images), squash(memory))
    together = (scales.prompts(logit(patches)) + weight * memory) / math.hypot(1, weight)
    tokens = torch.stack([scale(logit(images[:, i])) for i, scale in enumerate(scales[:2])], dim=1)
    return Evidence(squash(GLOBAL * tokens), squash(together))


def logit(probabilities: Tensor) -> Tensor:
    """Of probabilities that may be 0 or 1."""
    return torch.logit(probabilities.float(), eps=1e-6)


def scales_of(images: Tensor, logits: Sequence[Tensor], distances: Sequence[Tensor]) -> Scales:
    """Of (n, 2) probabilities of global tokens, of patches' logits and of their distances, the last two by picture.

    A picture has one global score, so that few of them say little of its spread: two more of deviation 1, which logits
    of frozen prompts have about, are added. Deviations have a floor: the same picture twice has none."""
    tokens = logit(images)
    spread = ((len(tokens) * tokens.var(dim=0, unbiased=False) + 2) / (len(tokens) + 2)).sqrt()
    whole = [Scale(float(m), float(s)) for m, s in zip(tokens.mean(dim=0), spread, strict=True)]
    patches = []
    for values, floor in ((torch.cat(list(logits)), 0.1), (torch.cat(list(distances)), 0.005)):
        patches.append(Scale(float(values.mean()), max(float(values.std(unbiased=False)), floor)))
    return Scales(*whole, *patches)
