"""What a detector is: the tokens of a batch of pictures -> how abnormal each picture and each patch is."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tipsomaly.detection.scoring import anomaly_probability
from tipsomaly.errors import ModelError
from tipsomaly.models.encoder import Encoder, ImageTokens, LayerTokens, Words
from tipsomaly.prompts.method import Conditioned, PromptMethod, TextEncoder
from tipsomaly.prompts.prototypes import pair, probabilities, prototypes
from tipsomaly.prompts.sentences import PromptEnsemble
from tipsomaly.prompts.strategy import Mode, no_prompts


class Evidence(NamedTuple):
    """Of a batch of views, on the model's device."""

    images: Tensor
    """(B, 2) float32 in [0, 1]: p_a of the object and of the spatial token."""
    patches: Tensor
    """(B, h, w) float32 in [0, 1]: the probability of each patch."""
    kinds: Tensor | None = None
    """(B, h, w, K) float32 in [0, 1]: that it has each kind of defect, from prompts that know kinds."""

    def spoken_by(self, speakers: Tensor) -> "Evidence":
        """The same with a region of interest: of patches, by `Place.speakers` (B, h, w), what is said for each; nothing
        where nobody does, which is a probability of 0."""
        chosen = speakers.flatten(1).clamp(min=0)
        patches = self.patches.flatten(1).gather(1, chosen).view_as(self.patches) * (speakers >= 0)
        kinds = self.kinds
        if kinds is not None:
            kinds = kinds.flatten(1, 2).gather(1, chosen[..., None].expand(-1, -1, kinds.shape[-1])).view_as(kinds)
        return Evidence(self.images, patches, kinds)

    def kinds_at_peak(self, names: tuple[str, ...]) -> list[dict[str, float] | None]:
        """For each picture the probability of each kind, by name, at its most abnormal patch."""
        if self.kinds is None:
            return [None] * len(self.patches)
        peaks = self.patches.flatten(1).argmax(1)
        values = self.kinds.flatten(1, 2)[torch.arange(len(peaks), device=peaks.device), peaks]
        return [dict(zip(names, row, strict=True)) for row in values.cpu().tolist()]


class Detector(Protocol):
    """Something that scores tokens, batch by batch; which pictures share a batch must not matter. A class of it needs
    `score` alone."""

    @property
    def image_tokens(self) -> LayerTokens | None:
        """Learned tokens that it wants in the vision tower; None: the tower as it is."""
        return None

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks of the tower (0-based, negative from the end) whose patch tokens it also takes; mostly none."""
        return ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the kinds of defects in its evidence, if it tells some apart."""
        return ()

    @property
    def identity(self) -> object:
        """Equal for detectors that make the same map."""
        return id(self)

    @abstractmethod
    def score(self, tokens: ImageTokens, *layers: Tensor) -> Evidence:
        """The evidence of a batch: of its tokens, and of the patch tokens (B, h, w, D) after the blocks `layers`."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """What tokens are compared with: fixed prompts of a class, or those of a method."""

    prototypes: Tensor | None
    """(1 + K, D) float32 unit vectors, the normal one first; None if they depend on the picture."""
    temperature: float
    method: PromptMethod | None = None
    """None: fixed prompts."""

    @property
    def identity(self) -> object:
        """Equal for prompts that score alike."""
        if self.method is None and self.prototypes is not None:
            return self.prototypes.cpu().numpy().tobytes()
        return id(self.method)

    def condition(self, tokens: ImageTokens, encode: TextEncoder) -> Conditioned:
        """The tokens as the prompts look at them, and their prototypes."""
        if self.method is not None:
            return self.method.condition(tokens, encode, self.prototypes)
        assert self.prototypes is not None
        return Conditioned(tokens, self.prototypes)


@dataclass(frozen=True, eq=False)
class PromptDetector(Detector):
    """Tokens against prototypes (equation 1): some prompts for the image, G_f, and some for the patches, G_l."""

    image: Prompts
    patches: Prompts
    encode: TextEncoder

    @property
    def image_tokens(self) -> LayerTokens | None:
        """Those of the patches' prompts."""
        return self.patches.method.image_tokens if self.patches.method else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the kinds of defects in the evidence."""
        return self.patches.method.kinds if self.patches.method else ()

    @property
    def identity(self) -> object:
        """Equal for detectors that make the same map."""
        return self.patches.identity

    def score(self, tokens: ImageTokens, *layers: Tensor) -> Evidence:
        """p_a of both global tokens under G_f and of the patches under G_l."""
        looked_at = self.patches.condition(tokens, self.encode)
        whole = looked_at if self.image is self.patches else self.image.condition(tokens, self.encode)
        both = torch.stack([whole.tokens.object, whole.tokens.spatial], dim=1)
        images = anomaly_probability(both, pair(whole.prototypes), self.image.temperature, self.encode.bias)
        if not self.kinds:
            patches = self._patches(looked_at)
            return Evidence(images, patches if looked_at.weight is None else patches * looked_at.weight)
        kinds = probabilities(looked_at.tokens.patches, looked_at.prototypes, self.patches.temperature)[..., 1:]
        return Evidence(images, kinds.sum(-1).clamp(max=1), kinds)

    def _patches(self, looked_at: Conditioned) -> Tensor:
        """The probability of each patch. Sigmoids do not add up to 1: as in the released code the map is then
        (1 - p_n + p_a) / 2, which of a softmax is p_a."""
        tokens, temperature, bias = looked_at.tokens.patches, self.patches.temperature, self.encode.bias
        if bias is None:
            return anomaly_probability(tokens, looked_at.prototypes, temperature)
        normal, abnormal = probabilities(tokens, pair(looked_at.prototypes), temperature, bias).unbind(-1)
        return (1 - normal + abnormal) / 2


class PromptedDetector(Detector):
    """One that asks the prompts, too: it takes the tower as they do, and tells the kinds that they tell."""

    def __init__(self, prompts: PromptDetector) -> None:
        self.prompts = prompts

    @property
    def image_tokens(self) -> LayerTokens | None:
        """Those of the prompts."""
        return self.prompts.image_tokens

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of the prompts."""
        return self.prompts.kinds


MakeDetector = Callable[[PromptDetector], Detector]
"""A detector class, or a function: of the prompts of a class of pictures, what scores these."""


class Detectors:
    """Makes detectors on the same towers, and keeps what they share: prototypes are computed once for each class."""

    def __init__(self, tips: Encoder, tokenizer: Words) -> None:
        self._tips, self._encode = tips, TextEncoder(tips.text_encoder, tokenizer)
        self.sets: dict[Path, PromptMethod] = {}  # prompt sets of the model's folder that were asked for
        self._prototypes = lru_cache(maxsize=1024)(self._compute)
        self.sentences = lru_cache(maxsize=64)(self._sentences)

    def __reduce__(self) -> tuple[type["Detectors"], tuple[Encoder, Words]]:
        """What is kept is not pickled: it is computed again."""
        return Detectors, (self._tips, self._encode.tokenizer)

    def detector(
        self, mode: Mode, domain: PromptEnsemble, class_name: str, method: PromptMethod | None
    ) -> PromptDetector:
        """What scores pictures of a class: the prompts of a domain and of a method, as the mode wants them. Raises
        ModelError for a mode that needs a method."""
        own, fixed, learned = self._tips.config.temperature, None, None
        if mode != "learned":
            fixed = Prompts(self._prototypes(domain, class_name), own)
        if mode != "fixed":
            if method is None:
                raise ModelError(no_prompts("this model", mode))
            learned = Prompts(self._prototypes(method), method.temperature or own, method)
        image, patches = fixed or learned, learned or fixed
        assert image and patches
        return PromptDetector(image, patches, self._encode)

    @torch.inference_mode()
    def _compute(self, prompts: PromptEnsemble | PromptMethod, class_name: str = "object") -> Tensor | None:
        if isinstance(prompts, PromptMethod):
            return prompts.prototypes(self._encode)
        return prototypes(*self._encode, prompts.sentences(class_name))

    @torch.inference_mode()
    def _sentences(self, prompts: PromptEnsemble, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings (n, D) of the normal and of the abnormal sentences for a class."""
        normal, abnormal = prompts.sentences(class_name)
        embedded = self._encode(normal + abnormal).cpu().numpy()
        return embedded[: len(normal)], embedded[len(normal) :]
