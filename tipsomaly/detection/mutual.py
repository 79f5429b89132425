"""Scores of a pile of unlabelled pictures by each other (MuSc: Li et al., ICLR 2024): a patch that few pictures have
anything like is anomalous. Zero-shot in the strict sense, but for pictures of one product in one pose or of one
texture: where layouts differ, what is normal is rare, too."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tipsomaly.detection.memory import nearest

SHARE = 0.3
"""Of the other pictures, those that are most like a patch have a say in its score: the paper's interval [0, 30 %]."""
VARIED = 0.85
"""A pile whose patches are on average this much as far from the other pictures as from the rest of their own, or more,
is too varied to be scored by each other."""


def mutual_distances(
    pictures: Sequence[Tensor], share: float = SHARE, device: torch.device | None = None
) -> list[Tensor]:
    """The mean of a patch's distances to the most similar patch of each of the `share` of the other pictures that have
    the most similar ones, at least of one.

    pictures: at least two of (h, w, D) float32 unit vectors -> (h, w) float32 in [0, 2] each. The work is quadratic in
    the number of pictures, the memory is of one picture against one other.
    """
    if len(pictures) < 2:
        raise ValueError("mutual scoring takes at least two pictures")
    kept = max(1, int(share * (len(pictures) - 1)))
    return [_mean_of_smallest(distances, kept) for distances in _to_each_other(pictures, device)]


def _to_each_other(pictures: Sequence[Tensor], device: torch.device | None) -> Iterator[Tensor]:
    """For each picture (others, h, w): its patches' distances to each of the others."""
    for i, picture in enumerate(pictures):
        ours = picture.to(device)
        others = (other.to(device).flatten(0, 1) for j, other in enumerate(pictures) if j != i)
        yield torch.stack([nearest(ours, other) for other in others])


def _mean_of_smallest(distances: Tensor, count: int) -> Tensor:
    return distances.topk(count, dim=0, largest=False).values.mean(dim=0).cpu()
