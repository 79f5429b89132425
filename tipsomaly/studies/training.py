"""Learning prompts (sections 2.4, 2.5 of the paper): two sets of vectors, trained with a local loss, frozen towers.

The towers are frozen and nothing is augmented, so a picture's tokens never change: they are computed once, and an
epoch touches only the text tower.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample, states
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.errors import TrainingError
from tipsomaly.files import digest, sha256, to_json, write_atomically
from tipsomaly.models.tips import ImageTokens, Tips
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.prompts.learned import LearnedPrompts, prompts_file
from tipsomaly.prompts.losses import bilinear
from tipsomaly.prompts.prototypes import prototypes
from tipsomaly.studies import figures

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

    # Upsampling as two matrices: on a GPU the gradient of F.interpolate adds up in any order, so that the same seed
    # would not give the same prompts.
    patches = probabilities(batch.tokens.patches).permute(0, 3, 1, 2)
    rows, columns = (bilinear(patches.shape[i], batch.masks.shape[i - 1]).to(patches) for i in (2, 3))
    maps = rows @ patches @ columns.T
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
    done = 0
    for pixels in pipeline.pixels([sample.image for sample in samples], batch_size):
        batch = samples[done : done + batch_size]
        done += batch_size
        masks = [torch.from_numpy(load_mask(sample, pipeline.image_size)).float() for sample in batch]
        labels = torch.tensor([sample.label for sample in batch], device=device)
        tokens = ImageTokens(*(token.clone() for token in pipeline.encode(pixels)))  # autograd takes these
        yield TrainingBatch(tokens, torch.stack(masks).to(device), labels)


class Trainer:
    """Prompts in training: Adam with betas 0.5 and 0.999 against frozen towers."""

    def __init__(
        self,
        tips: Tips,
        tokenizer: Tokenizer,
        start: LearnedPrompts,
        objective: Objective = "local",
        learning_rate: float = 1e-3,
    ) -> None:
        self.tips, self.tokenizer, self.start, self.objective = tips, tokenizer, start, objective
        device = tips.text_encoder.token_embedding.weight.device
        self.vectors = [v.detach().clone().to(device).requires_grad_() for v in (start.normal, start.abnormal)]
        self.optimizer = torch.optim.Adam(self.vectors, lr=learning_rate, betas=(0.5, 0.999))
        self.epochs = 0

    def epoch(self, batches: Iterable[TrainingBatch]) -> list[Losses]:
        """One step a batch, in order; returns the losses before each step."""
        history = []
        for batch in batches:
            pair = prototypes(self.tips.text_encoder, self.tokenizer, self.start.sentences(), tuple(self.vectors))
            parts = losses(batch, pair, self.tips.config.temperature)
            self.optimizer.zero_grad()
            parts.total(self.objective).backward()
            self.optimizer.step()
            history.append(Losses(*(part.detach() for part in parts)))
        self.epochs += 1
        return history

    def prompts(self) -> LearnedPrompts:
        """The prompts after the epochs so far."""
        metadata = {**self.start.metadata, "loss": self.objective, "epochs": str(self.epochs)}
        return LearnedPrompts(*(v.detach().cpu().clone() for v in self.vectors), self.start.ensemble, metadata)

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, besides the constructor's arguments."""
        vectors = [v.detach().cpu() for v in self.vectors]
        return {"epochs": self.epochs, "vectors": vectors, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.epochs = state["epochs"]
        for vector, value in zip(self.vectors, state["vectors"], strict=True):
            vector.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


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
    """Train `start`; after each epoch yield the prompts and the losses of its steps.

    `batches` is a sequence, or a function that begins an epoch; the paper takes 8 pictures at a time, unshuffled.
    """
    trainer = Trainer(tips, tokenizer, start, objective, learning_rate)
    for _ in range(epochs):
        history = trainer.epoch(batches() if callable(batches) else batches)
        yield trainer.prompts(), history


class Features(Sequence[TrainingBatch]):
    """The tokens of a data set, each picture encoded once; as a sequence it gives batches on the pipeline's device.

    They lie in memory as the tower gave them or, with `cache`, in float16 in a folder of their own in it, a file a
    batch. The folder is named by a digest of weights, input size and the data set's files (sizes and times), so that
    the next run finds them, and one that was cut off goes on where it was. A damaged file is computed again.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        samples: Sequence[Sample],
        batch_size: int = 8,
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        self._device, self._samples = pipeline.tips.vision_encoder.cls_token.device, samples
        self._starts = range(0, len(samples), batch_size)
        self._dtype = torch.float16 if cache else pipeline.tips.vision_encoder.cls_token.dtype
        height, width = pipeline.image_size
        patch, dim = pipeline.tips.config.vision.patch_size, pipeline.tips.config.vision.dim
        tokens = 2 + (height // patch) * (width // patch)
        self.nbytes = len(samples) * (tokens * dim * self._dtype.itemsize + height * width)
        settings = pipeline.settings()
        self.key = digest(
            ["features-v2", [settings[k] for k in ("dtype", "model", "image_size")], batch_size, states(samples)]
        )
        self._folder = Path(cache) / self.key[:16] if cache else None
        if progress:
            place = f"in {self._folder}" if cache else "in memory (on disk, in half the size: --cache DIR)"
            print(f"features of {len(samples)} pictures: {self.nbytes / 1e6:,.0f} MB {place}", file=sys.stderr)
        self._memory: list[dict[str, Tensor]] = []
        missing = [i for i in range(len(self)) if not (cache and _is_whole(self._path(i)))]
        wanted = [sample for i in missing for sample in samples[i * batch_size : (i + 1) * batch_size]]
        batches = encode_samples(pipeline, wanted, batch_size)
        batches = tqdm(batches, "encode", len(missing), unit="batch", disable=None if progress else True)
        for index, batch in zip(missing, batches, strict=True):
            tensors = {name: token.to("cpu", self._dtype) for name, token in batch.tokens._asdict().items()}
            tensors |= {"masks": batch.masks.cpu().bool(), "labels": batch.labels.cpu()}
            if cache:
                tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
                write_atomically(self._path(index), save(tensors, {"sha256": _checksum(tensors)}))
            else:
                self._memory.append(tensors)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> TrainingBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        stored = load_file(self._path(index)) if self._folder else self._memory[index]
        stored = {name: tensor.to(self._device) for name, tensor in stored.items()}
        tokens = ImageTokens(*(stored[name] for name in ImageTokens._fields))
        return TrainingBatch(tokens, stored["masks"].float(), stored["labels"])

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06}.safetensors"


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return (file.metadata() or {}).get("sha256") == _checksum(tensors)
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return False


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return sha256(*(tensors[name] for name in sorted(tensors)))


def train(
    pipeline: Pipeline,
    features: Features,
    output: str | Path,
    start: LearnedPrompts,
    *,
    epochs: int = 2,
    objective: Objective = "local",
    learning_rate: float = 1e-3,
) -> LearnedPrompts:
    """Train `start` and write it to the .safetensors file `output` after every epoch; returns the last prompts.

    Beside it are written `.log.jsonl` (a line a step), `.png` (the loss) and `.state` (for going on). After an
    interrupt the same call goes on behind the last whole epoch, and gives the same bytes as without; with more epochs
    it goes on from a finished training, with anything else changed it begins anew. Raises OptionError if `output` has
    another suffix.
    """
    output = prompts_file(output)
    trainer = Trainer(pipeline.tips, pipeline.tokenizer, start, objective, learning_rate)
    vectors = [v.tolist() for v in (start.normal, start.abnormal)]
    key = digest([features.key, vectors, start.ensemble, dict(start.metadata), objective, learning_rate])
    path = output.with_suffix(".state")
    history: list[list[list[float]]] = []
    if path.is_file():
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            if state["key"] == key and state["epochs"] <= epochs:
                trainer.restore(state)
                history = state["history"]
        except Exception:  # torch raises nearly anything on a file that is not its own
            print(f"{path}: not a training state, begins anew", file=sys.stderr)
    while trainer.epochs < epochs:
        bar = tqdm(features, f"epoch {trainer.epochs + 1}/{epochs}", unit="batch", disable=None)
        steps = trainer.epoch(bar)
        history.append([[float(part) for part in (step.total(objective), *step)] for step in steps])
        if not all(v.isfinite().all() for v in trainer.vectors):
            raise TrainingError(
                f"the prompts are no longer finite after epoch {trainer.epochs}: lower the learning rate"
            )
        buffer = io.BytesIO()
        torch.save({"key": key, "history": history, **trainer.state()}, buffer)
        write_atomically(path, buffer.getvalue())
        _write_training(trainer.prompts(), history, output)
    _write_training(trainer.prompts(), history, output)
    return trainer.prompts()


def _write_training(prompts: LearnedPrompts, history: list[list[list[float]]], output: Path) -> None:
    prompts.save(output)
    names = ("total", *Losses._fields)
    lines = [
        to_json({"epoch": epoch, "step": step, **dict(zip(names, values, strict=True))})
        for epoch, steps in enumerate(history, 1)
        for step, values in enumerate(steps, 1)
    ]
    write_atomically(output.with_suffix(".log.jsonl"), "\n".join(lines) + "\n")
    totals = [[values[0] for values in steps] for steps in history]
    write_atomically(output.with_suffix(".png"), figures.losses(totals, f"{prompts.metadata['loss']} loss"))
