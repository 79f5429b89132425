"""What a prompt method is: words, and perhaps the picture's tokens -> prototypes. The rest of the package only ever
takes the softmax of cosines to prototypes, the normal one first."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.models.config import TipsConfig
from tipsomaly.models.tips import ImageTokens, LayerTokens, TextTower
from tipsomaly.models.tokenizer import Tokenizer


class TextEncoder(NamedTuple):
    """Sentences to unit embeddings: the text tower and its tokenizer."""

    tower: TextTower
    tokenizer: Tokenizer

    def __call__(self, texts: Sequence[str], prompt: Tensor | None = None, layers: LayerTokens | None = None) -> Tensor:
        """(n, D) float32 unit embeddings. `prompt`, vectors (E, D) or (n, E, D), go before each sentence; `layers`
        holds learned tokens of the tower's blocks. Gradients flow to both."""
        device = self.tower.token_embedding.weight.device
        ids, valid = self.tokenizer(texts)
        length = max(int(valid.sum(1).max()), 1)  # padding is masked everywhere: cutting it off changes only the time
        ids, valid = ids[:, :length].to(device), valid[:, :length].to(device)
        return F.normalize(self.tower(ids, valid, prompt, layers).float(), dim=-1)


class Recipe(NamedTuple):
    """How a method is trained unless told otherwise: what its paper or its authors' code does."""

    epochs: int
    seed: int
    shuffle: bool
    batch_size: int = 8
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class TrainingBatch:
    """Tokens of some pictures, their masks (B, H, W) float in {0, 1} at the model's input size, and their labels (B,)
    int64: 0 for a normal picture, 1 for a defective one."""

    tokens: ImageTokens
    masks: Tensor
    labels: Tensor
    kinds: tuple[str, ...] = ()
    """The kind of defect of each picture, of those that are defective."""


class Conditioned(NamedTuple):
    """What a method makes of a batch of pictures: all that a score needs."""

    tokens: ImageTokens
    """As the method looks at them (CoPS: patches averaged with their neighbours)."""
    prototypes: Tensor
    """(1 + K, D), or (B, 1 + K, D) where they depend on the picture: float32 unit vectors, the normal one first."""
    weight: Tensor | None = None
    """(B, h, w) in [0, 1], by which the probabilities of the patches are multiplied."""


class PromptMethod(nn.Module):
    """A way from words, and perhaps the tokens of the pictures, to prototypes. `parameters()` is what is trained,
    `tensors()` what a prompt file holds."""

    NAME: ClassVar[str]
    RECIPE: ClassVar[Recipe]
    PER_IMAGE: ClassVar[bool] = False
    """Prototypes depend on the picture: they are not kept, and tiles, which are only parts of one, are refused."""
    image_score: Mapping[str, float]
    """The weights in the image score of p_a(g_o), p_a(g_s) and the largest patch probability: "object", "spatial" and
    "local"."""
    kinds: tuple[str, ...] = ("anomaly",)
    """What the abnormal prototypes stand for, in their order."""
    temperature: float | None = None
    """Of the softmax; None: the backbone's own."""
    image_tokens: LayerTokens | None = None
    """Learned tokens of the vision tower; None: it is untouched and its tokens serve any method."""
    metadata: Mapping[str, str]
    """Where the numbers come from: backbone, trained_on, epochs, seed ..."""

    @classmethod
    @abstractmethod
    def start(cls, config: TipsConfig, *, temperature: float, seed: int, **options: Any) -> Self:
        """A method to be trained, for towers of these sizes; the options are its own."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        temperature: float | None,
        metadata: Mapping[str, str],
    ) -> Self:
        """A trained method, of what a file holds. Raises ValueError, in one line, for what no such method is."""

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds: `parameters()` by name, less what only training needs."""
        return dict(self.state_dict())

    def settings(self) -> dict[str, Any]:
        """The method's own settings, for JSON; sizes are those of the tensors."""
        return {}

    @abstractmethod
    def prototypes(self, encode: TextEncoder) -> Tensor | None:
        """(1 + K, D) float32 unit vectors that no picture changes, the normal one first; None if a picture does."""

    def condition(self, tokens: ImageTokens, encode: TextEncoder, prototypes: Tensor | None) -> Conditioned:
        """What scores these pictures; `prototypes` are those of the method of that name."""
        return Conditioned(tokens, prototypes)

    @abstractmethod
    def losses(
        self, batch: TrainingBatch, encode: TextEncoder, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The terms of the loss, scalars by name; "total", the first, is what is minimised. The generator, on the CPU,
        is where noise comes from: seeded by seed, epoch and step, so that an interrupt changes nothing."""


def probabilities(tokens: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Equation 1 for any number of prototypes: the softmax over cosine similarities / temperature.

    tokens (B, ..., D), of any length; prototypes (1 + K, D), or (B, 1 + K, D) for each picture its own, unit vectors
    -> (B, ..., 1 + K) float32.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    if prototypes.ndim == 2:
        similarity = unit @ prototypes.float().T
    else:
        flat = unit.reshape(len(unit), -1, unit.shape[-1])
        similarity = (flat @ prototypes.float().mT).reshape(*unit.shape[:-1], -1)
    return (similarity / temperature).softmax(dim=-1)


def pair(prototypes: Tensor) -> Tensor:
    """(..., 1 + K, D) -> (..., 2, D): the normal prototype and the mean of the others, made a unit vector again."""
    if prototypes.shape[-2] == 2:
        return prototypes
    abnormal = F.normalize(prototypes[..., 1:, :].mean(-2), dim=-1)
    return torch.stack([prototypes[..., 0, :], abnormal], dim=-2)
