"""Tipsomaly's own learned prompts (section 2.4 of the paper): vectors put before class-agnostic sentences."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.models.config import TipsConfig
from tipsomaly.prompts.losses import local_loss, upsample
from tipsomaly.prompts.method import Option, PromptMethod, Recipe, TextEncoder, TrainingBatch
from tipsomaly.prompts.prototypes import probabilities, prototypes
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.prompts.strategy import Mode

Objective = Literal["local", "global", "both"]


class LearnedPrompts(PromptMethod):
    """The vectors of section 2.4: `normal` and `abnormal`, each (E, D) float32, put before class-agnostic sentences.

    `ensemble` says which sentences they were trained before. The paper writes the set {[Tn, "object"],
    [Ta, "damaged"], [Ta, "object"]}, here "paper"; the released code uses every sentence of a fixed ensemble for the
    word "object", here the name of that ensemble. `metadata` says where the vectors come from. `objective` is the loss
    of a training (table 2b); the paper's choice is the local one alone.

    >>> import torch
    >>> from tipsomaly import LearnedPrompts
    >>> prompts = LearnedPrompts(torch.zeros(8, 384), torch.ones(8, 384), "paper")
    >>> prompts.sentences()
    (['object'], ['damaged', 'object'])
    >>> prompts.save("prompts.safetensors")
    >>> LearnedPrompts.load("prompts.safetensors").abnormal.shape
    torch.Size([8, 384])
    """

    NAME: ClassVar[str] = "tipsomaly"
    RECIPE: ClassVar[Recipe] = Recipe(epochs=2, seed=111, shuffle=False)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "tokens": Option(int, "learned vectors of a prompt; default: 8", 1, 16),
        "ensemble": Option((*ENSEMBLES, "paper"), "sentences behind the vectors; default: industrial"),
        "objective": Option(get_args(Objective), "loss; default: local, the paper's"),
    }
    MODE: ClassVar[Mode] = "decoupled"
    SIGMOID: ClassVar[bool] = True

    def __init__(
        self,
        normal: Tensor,
        abnormal: Tensor,
        ensemble: str = "industrial",
        metadata: Mapping[str, str] | None = None,
        *,
        temperature: float | None = None,
        objective: Objective = "local",
    ) -> None:
        super().__init__()
        if normal.ndim != 2 or normal.shape != abnormal.shape or not normal.numel():
            raise ValueError(
                "learned prompts are two tensors (E, D) of one shape, "
                f"not {tuple(normal.shape)} and {tuple(abnormal.shape)}"
            )
        if not (normal.isfinite().all() and abnormal.isfinite().all()):
            raise ValueError("learned prompts hold NaN or infinity")
        if ensemble != "paper" and ensemble not in ENSEMBLES:
            raise ValueError(f"unknown prompt ensemble {ensemble!r}: choose paper, {', '.join(ENSEMBLES)}")
        self.normal, self.abnormal = (
            nn.Parameter(vectors.detach().clone(), requires_grad=False) for vectors in (normal, abnormal)
        )
        self.ensemble, self.metadata, self.temperature = ensemble, dict(metadata or {}), temperature
        self.objective: Objective = objective

    @classmethod
    def start(
        cls,
        config: TipsConfig,
        *,
        temperature: float | None = None,
        seed: int = 111,
        tokens: int = 8,
        ensemble: str = "industrial",
        **options: Any,
    ) -> Self:
        """Normal numbers of deviation 0.02, as the released code starts: two tensors (tokens, D)."""
        generator = torch.Generator().manual_seed(seed)
        normal, abnormal = (0.02 * torch.randn(tokens, config.text.dim, generator=generator) for _ in range(2))
        return cls(normal, abnormal, ensemble, temperature=temperature, **options)

    def settings(self) -> dict[str, Any]:
        return {"ensemble": self.ensemble, "objective": self.objective}

    def sentences(self) -> tuple[list[str], list[str]]:
        """The (normal, abnormal) sentences that the vectors are put before."""
        if self.ensemble == "paper":
            return ["object"], ["damaged", "object"]
        return ENSEMBLES[self.ensemble].sentences("object")

    def prototypes(self, encode: TextEncoder) -> Tensor:
        return prototypes(*encode, self.sentences(), (self.normal, self.abnormal))

    def losses(
        self, batch: TrainingBatch, encode: TextEncoder, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        pair, tau = self.prototypes(encode), self.temperature
        if tau is None:
            raise ValueError("no temperature to train at: set the backbone's")
        maps = upsample(probabilities(batch.tokens.patches, pair, tau, encode.bias), batch.masks.shape[1:])
        parts = local_loss(maps, batch.masks)
        # The released code hands probabilities, not logits, to its cross-entropy; table 2b was measured that way.
        object_loss, spatial_loss = (
            F.cross_entropy(probabilities(token, pair, tau, encode.bias), batch.labels)
            for token in (batch.tokens.object, batch.tokens.spatial)
        )
        parts["image"] = object_loss + spatial_loss
        local = parts["focal"] + parts["dice_abnormal"] + parts["dice_normal"]
        total = {"local": local, "global": parts["image"], "both": local + parts["image"]}[self.objective]
        return {"total": total, **parts}
