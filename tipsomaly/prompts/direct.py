"""Direct prototypes, ours: the two prototypes of the patch map learned as they are, without words and a text tower."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.models.config import TipsConfig
from tipsomaly.prompts.losses import local_loss, upsample
from tipsomaly.prompts.method import PromptMethod, Recipe, TextEncoder, TrainingBatch
from tipsomaly.prompts.prototypes import probabilities
from tipsomaly.prompts.strategy import Mode


class Direct(PromptMethod):
    """`normal` and `abnormal` (D,) float32, of any length: only their directions count. They are trained with
    Tipsomaly's local loss and, as its learned prompts, score patches; sentences score the image."""

    NAME: ClassVar[str] = "direct"
    RECIPE: ClassVar[Recipe] = Recipe(epochs=2, seed=111, shuffle=False)
    MODE: ClassVar[Mode] = "decoupled"
    SIGMOID: ClassVar[bool] = True
    temperature: float

    def __init__(
        self, normal: Tensor, abnormal: Tensor, *, temperature: float, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        if normal.ndim != 1 or normal.shape != abnormal.shape or not (normal.any() and abnormal.any()):
            shapes = f"{tuple(normal.shape)} and {tuple(abnormal.shape)}"
            raise ValueError(f"direct prototypes are two tensors (D,) of one shape, not 0, and not {shapes}")
        self.normal, self.abnormal = (
            nn.Parameter(vector.detach().clone(), requires_grad=False) for vector in (normal, abnormal)
        )
        self.temperature, self.metadata = temperature, dict(metadata or {})

    @classmethod
    def start(cls, config: TipsConfig, *, temperature: float, seed: int = 111, **options: Any) -> Self:
        """Normal numbers of deviation 0.02."""
        generator = torch.Generator().manual_seed(seed)
        normal, abnormal = (0.02 * torch.randn(config.text.dim, generator=generator) for _ in range(2))
        return cls(normal, abnormal, temperature=temperature, **options)

    def prototypes(self, encode: TextEncoder) -> Tensor:
        return F.normalize(torch.stack([self.normal, self.abnormal]), dim=-1)

    def losses(
        self, batch: TrainingBatch, encode: TextEncoder, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        patches = probabilities(batch.tokens.patches, self.prototypes(encode), self.temperature, encode.bias)
        parts = local_loss(upsample(patches, batch.masks.shape[1:]), batch.masks)
        return {"total": parts["focal"] + parts["dice_abnormal"] + parts["dice_normal"], **parts}
