"""The contract of a backbone, which everything above takes instead of one model: TIPS and SigLIP 2 keep it.

An encoder is two towers and their sizes. `families.py` says, by the `model_type` of config.json, what reads and writes
its model folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tipsomaly.models.config import TextConfig, TipsConfig


class ImageTokens(NamedTuple):
    """What the vision tower says of a batch of images; not yet L2-normalised."""

    object: Tensor
    """(B, D) the object-centric token g_o (TIPS: the CLS token)."""
    spatial: Tensor
    """(B, D) the spatial token g_s (TIPS: the register token). Without one it is g_o."""
    patches: Tensor
    """(B, h, w, D) the patch tokens, h = H / patch size and w = W / patch size."""


Readout = Literal["tokens", "values", "pooled"]
READOUTS: tuple[Readout, ...] = ("tokens", "values", "pooled")
"""Patch tokens as the last block makes them; its value tokens, as MaskCLIP (Zhou et al., ECCV 2022) and the authors of
TIPS take them for segmentation: there each token attends to itself alone (TIPS); or each patch token alone through the
attention pool that makes the global token of all of them (SigLIP 2). Global tokens are always of the first kind."""


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """Learned tokens that the blocks of a tower are given among its own, one set a block from the first on.

    They are inserted before the first block and dropped after the last (DAPO), or with `overwrite` they take the place
    of the first positions, from the second block on (CoPS). A block behind the last set keeps what the others made.
    """

    tokens: Tensor
    """(blocks, m, D)"""
    mix: float = 0.0
    """The share of what the block before made of a token; the learned one has the rest."""
    overwrite: bool = False

    @property
    def added(self) -> int:
        """By how many positions they lengthen a sequence."""
        return 0 if self.overwrite else self.tokens.shape[1]

    def before(self, block: int, x: Tensor, at: int = 0) -> Tensor:
        """What block number `block` is given instead of x (B, N, D); the tokens stand at position `at`."""
        index = block - self.overwrite
        if not 0 <= index < len(self.tokens):
            return x
        tokens = self.tokens[index].to(x.dtype).expand(x.shape[0], -1, -1)
        behind = at if block == 0 else at + tokens.shape[1]
        if block and self.mix:
            tokens = self.mix * x[:, at:behind] + (1 - self.mix) * tokens
        return torch.cat([x[:, :at], tokens, x[:, behind:]], dim=1)


class VisionSide(Protocol):
    """Pixels to tokens."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks: what `Pipeline.compile` compiles."""
        ...

    def layers(
        self,
        pixels: Tensor,
        indices: Sequence[int],
        learned: LayerTokens | None = None,
        readout: Readout = "tokens",
    ) -> list[ImageTokens]:
        """The tokens of (B, 3, H, W) pixels in [0, 1] after each of these blocks (0-based, negative from the end), in
        the order asked for. Raises ValueError for sides that are no multiples of the patch size."""
        ...


class TextSide(Protocol):
    """Token ids to one embedding a sentence."""

    @property
    def config(self) -> TextConfig:
        """Its sizes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def bias(self) -> float | None:
        """See `TipsConfig.bias`."""
        ...

    def __call__(
        self, ids: Tensor, valid: Tensor, prompt: Tensor | None = None, layers: LayerTokens | None = None
    ) -> Tensor:
        """(n, D) embeddings, not normalised, of ids (n, length) int64 and where they are not padding. `prompt`, vectors
        (E, D) or (n, E, D), go before the embedded words; gradients flow to it."""
        ...


class Words(Protocol):
    """Sentences to ids."""

    @property
    def model(self) -> bytes:
        """The file that it was read from: part of what a score depends on."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of pieces; ids are below it."""
        ...

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the text tower was not trained on, as far as that is known."""
        ...

    def __call__(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, length) int64 ids and (n, length) bool, true where the tower attends to one."""
        ...


class Encoder(Protocol):
    """Both towers of a model that puts pictures and sentences in one space."""

    @property
    def model_type(self) -> str:
        """That of config.json: the key of its family."""
        ...

    @property
    def config(self) -> TipsConfig:
        """Sizes, temperature and bias."""
        ...

    @property
    def readouts(self) -> tuple[Readout, ...]:
        """What its patches can be read from, the default first."""
        ...

    @property
    def has_spatial_token(self) -> bool:
        """Whether there is one beside the object token: without one S2 to S4 of table 2c mean nothing."""
        ...

    @property
    def vision_encoder(self) -> VisionSide:
        """The vision tower."""
        ...

    @property
    def text_encoder(self) -> TextSide:
        """The text tower."""
        ...

    @property
    def device(self) -> torch.device:
        """Where both towers are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the vision tower."""
        ...

    def digest(self, tokenizer: bytes) -> str:
        """SHA-256 of the sizes, of all weights and of the tokenizer, computed once and kept."""
        ...
