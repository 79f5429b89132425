"""Learning prompts (section 3.2 of the paper): two sets of vectors, trained with a local loss against frozen towers.

The towers are frozen and nothing is augmented, so a picture's tokens never change: they are computed once, and an
epoch touches only the text tower.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.datasets import Sample, load_mask
from tipsomaly.images import load_image, to_pixels
from tipsomaly.pipeline import Pipeline
from tipsomaly.prompts import LearnedPrompts, prototypes
from tipsomaly.tips import ImageTokens, Tips
from tipsomaly.tokenizer import Tokenizer

Objective = Literal["local", "global", "both"]


class Losses(NamedTuple):
    """The parts of the training loss (table 2b compares their sums); scalars."""

    focal: Tensor
    dice_abnormal: Tensor
    dice_normal: Tensor
    image: Tensor

    def total(self, objective: Objective = "local") -> Tensor:
        """The paper's choice is the local loss alone."""
        local = self.focal + self.dice_abnormal + self.dice_normal
        return {"local": local, "global": self.image, "both": local + self.image}[objective]


@dataclass(frozen=True)
class TrainingBatch:
    """Frozen tokens of some pictures, their masks (B, H, W) float in {0, 1} at the model's input size, and their labels
    (B,) int64, 1 for defective."""

    tokens: ImageTokens
    masks: Tensor
    labels: Tensor


def losses(batch: TrainingBatch, pair: Tensor, temperature: float) -> Losses:
    """The losses of a batch for prototypes `pair` (2, D), normal then abnormal."""

    def probabilities(tokens: Tensor) -> Tensor:
        return (F.normalize(tokens.float(), dim=-1) @ pair.T / temperature).softmax(-1)

    maps = F.interpolate(
        probabilities(batch.tokens.patches).permute(0, 3, 1, 2), size=batch.masks.shape[1:], mode="bilinear"
    )
    # The released code hands probabilities, not logits, to its cross-entropy; table 2b was measured that way.
    tokens = (batch.tokens.object, batch.tokens.spatial)
    image = sum(F.cross_entropy(probabilities(token), batch.labels) for token in tokens)
    return Losses(
        focal_loss(maps, batch.masks), dice_loss(maps[:, 1], batch.masks), dice_loss(maps[:, 0], 1 - batch.masks), image
    )


def focal_loss(maps: Tensor, masks: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Mean of -(1 - p)^gamma log p over pixels, p the probability of a pixel's own state, with labels smoothed.

    maps (B, 2, H, W) probabilities of normal and abnormal; masks (B, H, W) in {0, 1}.
    """
    target = torch.stack([1 - masks, masks], dim=1).clamp(smooth, 1 - smooth)
    p = (target * maps).sum(1) + smooth
    return (-((1 - p) ** gamma) * p.log()).mean()


def dice_loss(maps: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - the mean Dice coefficient of probabilities (B, H, W) and masks (B, H, W)."""
    overlap = (maps * masks).sum((1, 2))
    return 1 - ((2 * overlap + smooth) / (maps.sum((1, 2)) + masks.sum((1, 2)) + smooth)).mean()


def initial_prompts(dim: int, count: int = 8, seed: int = 111) -> tuple[Tensor, Tensor]:
    """Normal numbers of deviation 0.02, as the released code starts: two tensors (count, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(0.02 * torch.randn(count, dim, generator=generator) for _ in range(2))


def encode_samples(pipeline: Pipeline, samples: Sequence[Sample], batch_size: int = 8) -> Iterator[TrainingBatch]:
    """The frozen tokens and masks of a data set at the pipeline's input size, in order, on its device."""
    device = pipeline.tips.vision_encoder.cls_token.device
    for first in range(0, len(samples), batch_size):
        batch = samples[first : first + batch_size]
        pixels = [to_pixels(load_image(sample.image).image, pipeline.image_size) for sample in batch]
        masks = [torch.from_numpy(load_mask(sample, pipeline.image_size)).float() for sample in batch]
        labels = torch.tensor([sample.label for sample in batch], device=device)
        tokens = ImageTokens(*(token.clone() for token in pipeline.encode(torch.stack(pixels))))  # autograd takes these
        yield TrainingBatch(tokens, torch.stack(masks).to(device), labels)


def train_prompts(
    tips: Tips,
    tokenizer: Tokenizer,
    batches: Callable[[], Iterable[TrainingBatch]] | Sequence[TrainingBatch],
    start: LearnedPrompts,
    *,
    epochs: int = 2,
    objective: Objective = "local",
    learning_rate: float = 1e-3,
) -> Iterator[tuple[LearnedPrompts, list[Losses]]]:
    """Train `start` with Adam (betas 0.5, 0.999); after each epoch yield the prompts and the losses of its steps.

    `batches` is a sequence, or a function that begins an epoch; the paper takes 8 pictures at a time, unshuffled.
    """
    device = tips.text_encoder.token_embedding.weight.device
    vectors = [v.detach().clone().to(device).requires_grad_() for v in (start.normal, start.abnormal)]
    optimizer = torch.optim.Adam(vectors, lr=learning_rate, betas=(0.5, 0.999))
    sentences = start.sentences()
    for epoch in range(1, epochs + 1):
        history = []
        for batch in batches() if callable(batches) else batches:
            pair = prototypes(tips.text_encoder, tokenizer, sentences, (vectors[0], vectors[1]))
            parts = losses(batch, pair, tips.config.temperature)
            optimizer.zero_grad()
            parts.total(objective).backward()
            optimizer.step()
            history.append(Losses(*(part.detach() for part in parts)))
        metadata = {**start.metadata, "loss": objective, "epochs": str(epoch)}
        yield LearnedPrompts(*(v.detach().cpu().clone() for v in vectors), start.ensemble, metadata), history
