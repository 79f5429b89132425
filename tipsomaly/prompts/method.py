"""What a prompt method is: words, and perhaps the picture's tokens -> prototypes. The rest of the package only ever
takes the softmax of cosines to prototypes, the normal one first."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from tipsomaly.errors import ModelError, one_line, printable
from tipsomaly.files import sha256
from tipsomaly.models.config import TipsConfig
from tipsomaly.models.encoder import ImageTokens, LayerTokens, TextSide, Words
from tipsomaly.prompts.prompt_file import PromptFile
from tipsomaly.prompts.prototypes import embed
from tipsomaly.prompts.strategy import Mode


class TextEncoder(NamedTuple):
    """Sentences to unit embeddings: the text tower and its tokenizer."""

    tower: TextSide
    tokenizer: Words

    @property
    def bias(self) -> float | None:
        """Of the sigmoid that the backbone has instead of a softmax, if it has one."""
        return self.tower.bias

    def __call__(self, texts: Sequence[str], prompt: Tensor | None = None, layers: LayerTokens | None = None) -> Tensor:
        """(n, D) float32 unit embeddings. `prompt`, vectors (E, D) or (n, E, D), go before each sentence; `layers`
        holds learned tokens of the tower's blocks. Gradients flow to both."""
        return embed(self.tower, self.tokenizer, texts, prompt, layers)


class Recipe(NamedTuple):
    """How a method is trained unless told otherwise: what its paper or its authors' code does."""

    epochs: int
    seed: int
    shuffle: bool
    batch_size: int = 8
    learning_rate: float = 1e-3


class Option(NamedTuple):
    """A choice that a method has for its training: a keyword of `start`, and an option of `tipsomaly train`. Methods
    that share its name share its type and range."""

    type: type[int] | type[float] | tuple[str, ...]
    """A number, or one of these names."""
    help: str
    """What it is, and the default."""
    low: float | None = None
    high: float | None = None


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


_S5 = {"spatial": 1.0, "local": 1.0}


class PromptMethod(nn.Module):
    """A way from words, and perhaps the tokens of the pictures, to prototypes. `parameters()` is what is trained,
    `tensors()` what a prompt file holds."""

    NAME: ClassVar[str]
    RECIPE: ClassVar[Recipe]
    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """What else can be chosen for a training, by the name of the keyword of `start`."""
    MODE: ClassVar[Mode] = "learned"
    """Its paper's."""
    SIGMOID: ClassVar[bool] = False
    """It also works with a backbone that has a sigmoid instead of the softmax, and takes no tokens in its blocks."""
    PER_IMAGE: ClassVar[bool] = False
    """Prototypes depend on the picture: they are not kept, and tiles, which are only parts of one, are refused."""
    TELLS_KINDS: ClassVar[bool] = False
    """It tells kinds of defects apart: `start` takes `kinds`, and is trained on pictures of one kind each."""
    image_score: Mapping[str, float] = _S5
    """The weights in the image score of p_a(g_o), p_a(g_s) and the largest patch probability: "object", "spatial" and
    "local"."""
    kinds: tuple[str, ...] = ()
    """The kinds of defects that the abnormal prototypes stand for, in their order; none if there is but one."""
    temperature: float | None = None
    """Of the softmax; None: the backbone's own."""
    normal: Tensor
    """(..., D), what stands for the normal state."""
    metadata: Mapping[str, str]
    """Where the numbers come from: backbone, trained_on, epochs, seed ..."""

    @classmethod
    @abstractmethod
    def start(cls, config: TipsConfig, *, temperature: float, seed: int, **options: Any) -> Self:
        """A method to be trained, for towers of these sizes; the options are its own."""

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        temperature: float | None,
        metadata: Mapping[str, str],
    ) -> Self:
        """A trained method, of what a file holds: unless there is more to it, the constructor takes all by name.
        Raises ValueError or TypeError for what no such method is."""
        given: dict[str, Any] = {**tensors, **settings}
        known = {} if temperature is None else {"temperature": temperature}
        return cls(**given, **known, metadata=metadata).requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds: `parameters()` by name, less what only training needs."""
        return dict(self.state_dict())

    def settings(self) -> dict[str, Any]:
        """The method's own settings, for JSON; sizes are those of the tensors."""
        return {}

    @property
    def width(self) -> int:
        """D of the towers that it was made for."""
        return self.normal.shape[-1]

    @property
    def blocks(self) -> tuple[int, int]:
        """For how many blocks of the text and of the vision tower there are learned tokens."""
        return 0, 0

    def of_kinds(self, kinds: Sequence[str]) -> Self:
        """The same for other kinds of defects, trained or not, of a method that tells kinds apart."""
        raise NotImplementedError(f"{self.NAME} tells no kinds apart")

    @property
    def image_tokens(self) -> LayerTokens | None:
        """Learned tokens of the vision tower; None: it is untouched and its tokens serve any method."""
        return None

    @abstractmethod
    def prototypes(self, encode: TextEncoder) -> Tensor | None:
        """(1 + K, D) float32 unit vectors that no picture changes, the normal one first; None if a picture does."""

    def condition(self, tokens: ImageTokens, encode: TextEncoder, prototypes: Tensor | None) -> Conditioned:
        """What scores these pictures; `prototypes` are those of the method of that name."""
        if prototypes is None:
            raise NotImplementedError(f"{self.NAME} has no prototypes without a picture")
        return Conditioned(tokens, prototypes)

    @abstractmethod
    def losses(
        self, batch: TrainingBatch, encode: TextEncoder, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The terms of the loss, scalars by name; "total", the first, is what is minimised. The generator, on the CPU,
        is where noise comes from: seeded by seed, epoch and step, so that an interrupt changes nothing."""

    def check(self, config: TipsConfig) -> None:
        """Raises ModelError, in one line, for towers of other sizes than it was made for."""
        made_for = self.metadata.get("backbone", "another model")
        if config.bias is not None and not self.SIGMOID:
            raise ModelError(f"prompts of {self.NAME} need a backbone with a softmax and tokens in its blocks: a TIPS")
        if self.width != config.text.dim:
            raise ModelError(
                f"these prompts are {self.width} wide (made for {made_for}), the model is {config.text.dim}"
            )
        depths = (config.text.depth, config.vision.depth)
        for name, blocks, depth in zip(("text", "vision"), self.blocks, depths, strict=True):
            if blocks > depth:
                raise ModelError(
                    f"these prompts are for {blocks} blocks of the {name} tower (made for {made_for}), the model has "
                    f"{depth}"
                )

    def digest(self) -> str:
        """SHA-256 of all that a score depends on."""
        own = json.dumps([self.NAME, self.settings(), self.temperature], sort_keys=True)
        parts = (part for name, value in sorted(self.tensors().items()) for part in (f"{name} {value.shape}", value))
        return sha256(own, *parts)

    def save(self, path: str | Path) -> None:
        """Write a prompt file, whole or not at all; the same prompts give the same bytes."""
        PromptFile(self.NAME, self.tensors(), self.settings(), self.temperature, self.metadata).write(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a prompt file of this method; ValueError, in one line, when it is something else."""
        file = PromptFile.read(path)
        if file.method != cls.NAME:
            raise ValueError(f"{path}: prompts of the method {printable(file.method)!r}, not {cls.NAME!r}")
        return cls.from_file(file, path)

    @classmethod
    def from_file(cls, file: PromptFile, path: str | Path) -> Self:
        """The method of a file that was read from `path`."""
        try:
            return cls.from_tensors(file.tensors, file.settings, file.temperature, file.metadata)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # whatever a file asks for
            raise ValueError(f"{path}: not a prompt set of the method {cls.NAME!r}: {one_line(error)}") from None
