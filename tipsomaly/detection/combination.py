"""How what the prompts say and what a memory of normal pictures says go together.

Each patch speaks of how far it is from what is said of the normal pictures themselves, which are left out of the memory
one at a time: in standard deviations of that. So both share a scale, and their weighted sum, again of deviation 1 if
they are independent (Stouffer's method for two probabilities of being normal), is the evidence. A patch counts for one
half where it is as far as the farthest patch of a normal picture, and the whole picture where it is as a normal one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tipsomaly.detection.detector import Evidence

Use = Literal["prompts", "memory", "both"]
USES: tuple[Use, ...] = ("prompts", "memory", "both")

FAR = 6.0
"""Deviations above the peak from which on their logarithm counts."""
SURE = 0.95
"""p_a of a patch that the prompts are sure of."""


class Scale(NamedTuple):
    """Mean and standard deviation of something among normal pictures."""

    mean: float
    deviation: float

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation


class Scales(NamedTuple):
    """Of the normal pictures."""

    tokens: tuple[float, float]
    """Means of the logits of p_a of the object and of the spatial token."""
    prompts: Scale
    """Of the logits of p_a of the patches."""
    memory: Scale
    """Of the patches' distances to the memory."""
    peaks: tuple[float, float]
    """Mean over the pictures of the largest of their patches, in deviations: of the memory alone, and of both."""

    def both(self, logits: Tensor, distances: Tensor, weight: float) -> Tensor:
        """Patches by prompts and memory together, in deviations; `weight` is the memory's, the prompts' being 1."""
        return (self.prompts(logits) + weight * self.memory(distances)) / math.hypot(1, weight)


def squash(deviations: Tensor, farthest: Tensor) -> Tensor:
    """Standard deviations above the peak of a normal picture -> (0, 1]: 0.18 at the mean if the peak is 4.5 above it,
    one half at the peak, and from there on their logarithm, to 1 at `farthest`. Of products that hardly differ a defect
    and all around it are 50 and more deviations away: what a logistic curve takes for the same must stay in order."""
    above = torch.asinh(deviations.clamp(min=0) / FAR) / torch.asinh(farthest.clamp(min=FAR) / FAR)
    return torch.sigmoid(deviations.clamp(max=0) / 3) + above.clamp(max=1) / 2


def combine(images: Tensor, patches: Tensor, distances: Tensor, scales: Scales, weight: float, use: Use) -> Evidence:
    """p_a of the global tokens (B, 2) and of the patches (B, h, w) by the prompts, and the patches' distances (B, h, w)
    -> the evidence of the prompts alone, as it was; of the memory alone, which has no global score; or of both."""
    if use == "prompts":
        return Evidence(images, patches)
    most = distances.new_ones(())  # the distance of what has nothing in common with the memory
    if use == "memory":
        peak = scales.peaks[0]
        return Evidence(torch.zeros_like(images), squash(scales.memory(distances) - peak, scales.memory(most) - peak))
    peak, farthest = scales.peaks[1], scales.both(logit(SURE * most), most, weight)
    together = squash(scales.both(logit(patches), distances, weight) - peak, farthest - peak)
    return Evidence(torch.sigmoid(logit(images) - images.new_tensor(scales.tokens)), together)


def logit(probabilities: Tensor) -> Tensor:
    """Of probabilities that may be 0 or 1."""
    return torch.logit(probabilities.float(), eps=1e-6)


def scales_of(images: Tensor, logits: Sequence[Tensor], distances: Sequence[Tensor], weight: float) -> Scales:
    """Of (n, 2) probabilities of global tokens, of patches' logits and of their distances, the last two (patches,) by
    picture. Deviations have a floor: the same picture twice has none."""
    sizes, every = [len(values) for values in logits], (torch.cat(list(logits)), torch.cat(list(distances)))
    prompts, memory = (
        Scale(float(values.mean()), max(float(values.std(unbiased=False)), floor))
        for values, floor in zip(every, (0.1, 0.005), strict=True)
    )
    known = logit(images).mean(dim=0).tolist()
    return with_peaks(Scales((known[0], known[1]), prompts, memory, (0.0, 0.0)), *every, sizes, weight, torch.mean)


def with_peaks(
    scales: Scales,
    logits: Tensor,
    distances: Tensor,
    sizes: Sequence[int],
    weight: float,
    middle: Callable[[Tensor], Tensor],
) -> Scales:
    """The same scales with the peaks of pictures of so many patches each; `middle` is the mean or the median."""
    found = (scales.memory(distances), scales.both(logits, distances, weight))
    alone, both = (float(middle(torch.stack([part.max() for part in v.split(list(sizes))]))) for v in found)
    return scales._replace(peaks=(alone, both))
