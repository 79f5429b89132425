"""Distillation: another model's tokens as targets, as the smaller TIPS models have them from the largest."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.models.encoder import ImageTokens
from tipsomaly.models.folder import ModelFolder


class Teacher:
    """The frozen vision tower of a model folder, whose tokens a student's are mapped to by a linear layer for each kind
    of token. The targets have zero mean and unit deviation over `images` (B, 3, S, S), in every dimension."""

    def __init__(self, folder: Path, images: Tensor, device: str = "cpu") -> None:
        self.tower = ModelFolder(folder).read_tips(torch.device(device), torch.float32).vision_encoder
        tokens = self.tower(images.to(device))
        self.moments = [(t.flatten(0, -2).mean(0), t.flatten(0, -2).std(0)) for t in tokens]

    def heads(self, dim: int) -> nn.ModuleList:
        """Linear layers from a student's tokens to the targets."""
        return nn.ModuleList(nn.Linear(dim, self.tower.config.dim) for _ in ImageTokens._fields)

    def loss(self, images: Tensor, tokens: ImageTokens, heads: nn.ModuleList) -> Tensor:
        """Mean squared error, summed over the kinds of tokens: 1 each for a student that knows nothing."""
        with torch.no_grad():
            targets = [(t - mean) / std for t, (mean, std) in zip(self.tower(images), self.moments, strict=True)]
        losses = (F.mse_loss(head(t), target) for head, t, target in zip(heads, tokens, targets, strict=True))
        return sum(losses, torch.zeros((), device=images.device))
