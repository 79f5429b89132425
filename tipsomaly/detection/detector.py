"""What a detector is: the tokens of a batch of pictures -> how abnormal each picture and each patch is."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tipsomaly.detection.scoring import anomaly_probability
from tipsomaly.models.tips import ImageTokens


class Evidence(NamedTuple):
    """Of a batch of views, on the model's device."""

    images: Tensor
    """(B, 2) float32 in [0, 1]: p_a of the object and of the spatial token."""
    patches: Tensor
    """(B, h, w) float32 in [0, 1]: the probability of each patch."""


class Detector(Protocol):
    """Something that scores tokens, batch by batch; which pictures share a batch must not matter."""

    def score(self, tokens: ImageTokens) -> Evidence:
        """The evidence of a batch."""
        ...


class PromptDetector(NamedTuple):
    """The paper's: tokens against a pair of prototypes for the image, G_f, and one for the patches, G_l, each (2, D)
    float32 unit vectors, normal then abnormal (section 2.5, equation 1)."""

    global_prototypes: Tensor
    local_prototypes: Tensor
    temperature: float

    def score(self, tokens: ImageTokens) -> Evidence:
        """p_a of both global tokens under G_f and of the patches under G_l."""
        both = torch.stack([tokens.object, tokens.spatial], dim=1)
        return Evidence(
            anomaly_probability(both, self.global_prototypes, self.temperature),
            anomaly_probability(tokens.patches, self.local_prototypes, self.temperature),
        )
