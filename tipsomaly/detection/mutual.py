"""Scores of a pile of unlabelled pictures by each other (MuSc: Li et al., ICLR 2024): a patch that few pictures have
anything like is anomalous. Zero-shot in the strict sense, but for pictures of one product in one pose or of one
texture: where layouts differ, what is normal is rare, too."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tipsomaly.detection.combination import Scale, Scales, combine, logit, with_peaks
from tipsomaly.detection.detector import Evidence, PromptDetector, PromptedDetector
from tipsomaly.detection.leave_one_out import Normal, how_unlike
from tipsomaly.detection.memory import nearest, unit_tokens
from tipsomaly.errors import OptionError
from tipsomaly.models.encoder import ImageTokens

SHARE = 0.3
"""Of the other pictures, those that are most like a patch have a say in its score: the paper's interval [0, 30 %]."""
VARIED = 1.0
"""A pile whose patches are on average as far from the other pictures as from the rest of their own is too varied."""
ITSELF = 1e-3
"""Mean distance of a picture's patches to those of the pile below which the two are the same picture."""


def mutual_distances(tokens: Tensor, pile: Sequence[Tensor], share: float = SHARE) -> Tensor:
    """The mean of a patch's distances to the most similar patch of each of the `share` of the other pictures that have
    the most similar ones, at least of one. A picture that is in the pile is left out of it once.

    tokens (h, w, D) float32 unit vectors of a picture; pile: (patches, D) of each picture -> (h, w) float32 in [0, 2].
    The work is in proportion to the pile, the memory to its pictures times a patch map.
    """
    distances = torch.stack([nearest(tokens, other) for other in pile])
    means = distances.flatten(1).mean(dim=1)
    if means.min() < ITSELF:
        distances = distances[torch.arange(len(pile), device=means.device) != means.argmin()]
    if not len(distances):
        raise OptionError("pictures that score each other must be at least two")
    kept = max(1, int(share * len(distances)))
    return distances.topk(kept, dim=0, largest=False).values.mean(dim=0)


class MutualDetector(PromptedDetector):
    """What the prompts say and how rare each patch is in a pile, on the scale of the pile's own pictures, most of which
    are taken to be normal."""

    def __init__(self, prompts: PromptDetector, pile: Sequence[Normal]) -> None:
        """Of at least two pictures. The work is quadratic in their number."""
        if len(pile) < 2:
            raise OptionError("pictures that score each other must be at least two")
        super().__init__(prompts)
        self.pile = [torch.cat([view.flatten(0, 1) for view in picture.tokens]) for picture in pile]
        self.unlikeness = how_unlike(pile)
        object_, spatial = logit(torch.stack([picture.images for picture in pile])).median(dim=0).values.tolist()
        patches = torch.cat([logit(p).flatten() for picture in pile for p in picture.patches]).cpu()
        own = [mutual_distances(view, self.pile).flatten().cpu() for picture in pile for view in picture.tokens]
        distances, sizes = torch.cat(own), [sum(p.numel() for p in picture.patches) for picture in pile]
        scales = Scales((object_, spatial), _scale(patches, 0.1), _scale(distances, 0.005), (0.0, 0.0))
        self.scales = with_peaks(scales, patches, distances, sizes, 1.0, torch.median)

    @property
    def layers(self) -> tuple[int, ...]:
        """The last block: a pile is of its patch tokens."""
        return (-1,)

    @property
    def note(self) -> str:
        """How it scored, and whether that can be trusted."""
        said = f"scored with {len(self.pile)} unlabelled pictures by each other"
        if self.unlikeness is not None and self.unlikeness > VARIED:
            far = f"a patch is {self.unlikeness:.2f} times as far from the others as from the rest of its own"
            said += f", which are too varied for it: {far}"
        return said

    def score(self, tokens: ImageTokens, *layers: Tensor) -> Evidence:
        """The evidence of a batch; `layers` has the patch tokens of the last block."""
        said = self.prompts.score(tokens)
        distances = torch.stack([mutual_distances(picture, self.pile) for picture in unit_tokens(layers)])
        return combine(said.images, said.patches, distances, self.scales, 1.0, "both")._replace(kinds=said.kinds)


def _scale(values: Tensor, floor: float) -> Scale:
    """The median, and how far above it the 84th percentile is: a few defects in the pile change neither much."""
    values = values.float().cpu()
    step = -(-len(values) // 10**6)  # torch's quantile takes no more than 16 million numbers
    middle, upper = values[::step].quantile(torch.tensor([0.5, 0.84])).tolist()
    return Scale(middle, max(upper - middle, floor))
