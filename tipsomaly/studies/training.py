"""Learning prompts (sections 2.4, 2.5 of the paper): a prompt method, trained against frozen towers.

Nothing is augmented, so a picture's tokens never change where the vision tower is untouched: they are computed once,
and an epoch touches only the text tower.
"""

import copy
import io
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from tipsomaly.data.kinds import kind
from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample, states
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.errors import TrainingError
from tipsomaly.files import digest, sha256, to_json, write_atomically
from tipsomaly.models.encoder import Encoder, ImageTokens, LayerTokens, Readout, VisionSide, Words
from tipsomaly.prompts.method import PromptMethod, TextEncoder, TrainingBatch
from tipsomaly.prompts.prompt_file import prompts_file
from tipsomaly.studies import figures

Method = TypeVar("Method", bound=PromptMethod)
Batch = TypeVar("Batch", covariant=True)


@dataclass(frozen=True)
class PixelBatch:
    """The pixels (B, 3, H, W) uint8 of some pictures, for a method that changes the vision tower; the rest as in
    TrainingBatch."""

    pixels: Tensor
    masks: Tensor
    labels: Tensor
    kinds: tuple[str, ...]
    readout: Readout = "tokens"

    def encoded(self, tower: VisionSide, learned: LayerTokens | None) -> TrainingBatch:
        """Their tokens; gradients flow to the learned ones."""
        [tokens] = tower.layers(self.pixels.float() / 255, [-1], learned, self.readout)
        return TrainingBatch(tokens, self.masks, self.labels, self.kinds)


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """One seeded order of the samples. Batches of it stay together, so that they can be cached: an epoch shuffles only
    their order."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[i] for i in order.tolist()]


def encode_samples(pipeline: Pipeline, samples: Sequence[Sample], batch_size: int = 8) -> Iterator[TrainingBatch]:
    """The frozen tokens and masks of a data set at the pipeline's input size, in order, on its device."""
    for batch in read_samples(pipeline, samples, batch_size):
        tokens = ImageTokens(*(token.clone() for token in pipeline.encode(batch.pixels)))  # autograd takes these
        yield TrainingBatch(tokens, batch.masks, batch.labels, batch.kinds)


def read_samples(pipeline: Pipeline, samples: Sequence[Sample], batch_size: int = 8) -> Iterator[PixelBatch]:
    """The pixels and masks of a data set at the pipeline's input size, in order, on its device."""
    done = 0
    for pixels in pipeline.pixels([sample.image for sample in samples], batch_size):
        batch = samples[done : done + batch_size]
        done += batch_size
        masks = torch.stack([torch.from_numpy(load_mask(sample, pipeline.image_size)).float() for sample in batch])
        labels = torch.tensor([sample.label for sample in batch], device=pipeline.device)
        kinds = tuple(map(kind, batch))
        yield PixelBatch(pixels, masks.to(pipeline.device), labels, kinds, pipeline.options.readout)


class Trainer(Generic[Method]):
    """A prompt method in training: Adam with betas 0.5 and 0.999 against frozen towers. What an epoch does depends on
    its number and the seed alone, not on what was drawn before it."""

    def __init__(
        self,
        tips: Encoder,
        tokenizer: Words,
        start: Method,
        *,
        learning_rate: float | None = None,
        seed: int | None = None,
        shuffle: bool | None = None,
    ) -> None:
        """`start` itself stays as it is; what is not given is its published recipe's. With `shuffle` batches come in
        another order each epoch."""
        start.check(tips.config)
        recipe = start.RECIPE
        self.tips, self.encode = tips, TextEncoder(tips.text_encoder, tokenizer)
        self.seed = recipe.seed if seed is None else seed
        self.shuffle = recipe.shuffle if shuffle is None else shuffle
        self.method = copy.deepcopy(start).to(tips.text_encoder.device).requires_grad_()
        if self.method.temperature is None:
            self.method.temperature = tips.config.temperature
        rate = recipe.learning_rate if learning_rate is None else learning_rate
        self.optimizer = torch.optim.Adam(self.method.parameters(), lr=rate, betas=(0.5, 0.999))
        self.epochs = 0

    def epoch(
        self, batches: Sequence[TrainingBatch | PixelBatch] | Iterable[TrainingBatch | PixelBatch], bar: str = ""
    ) -> list[dict[str, float]]:
        """One step a batch; returns the terms of the loss before each step. `bar` is the name of a progress bar. Only
        sequences can be shuffled."""
        total = len(batches) if isinstance(batches, Sequence) else None
        if self.shuffle and isinstance(batches, Sequence):
            order = torch.randperm(len(batches), generator=self._generator("order"))
            batches = map(batches.__getitem__, order.tolist())
        history: list[dict[str, Tensor]] = []
        for step, batch in enumerate(tqdm(batches, bar, total, unit="batch", disable=None if bar else True)):
            if isinstance(batch, PixelBatch):
                batch = batch.encoded(self.tips.vision_encoder, self.method.image_tokens)
            parts = self.method.losses(batch, self.encode, self._generator(step))
            self.optimizer.zero_grad()
            parts["total"].backward()
            self.optimizer.step()
            history.append({name: part.detach() for name, part in parts.items()})
        self.epochs += 1
        return [{name: float(part) for name, part in parts.items()} for parts in history]

    def _generator(self, purpose: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(int(digest([self.seed, self.epochs, purpose])[:15], 16))

    def prompts(self) -> Method:
        """The method after the epochs so far, on the CPU."""
        method = copy.deepcopy(self.method).cpu().requires_grad_(False)
        method.metadata = {**method.metadata, "epochs": str(self.epochs)}
        return method

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, besides the constructor's arguments."""
        method = {name: value.detach().cpu() for name, value in self.method.state_dict().items()}
        return {"epochs": self.epochs, "method": method, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs = state["epochs"]


def train_prompts(
    tips: Encoder,
    tokenizer: Words,
    batches: Sequence[TrainingBatch | PixelBatch],
    start: Method,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
) -> Iterator[tuple[Method, list[dict[str, float]]]]:
    """Train `start`, by its published recipe where nothing else is given; after each epoch yield the prompts and the
    terms of the loss of its steps."""
    trainer = Trainer(tips, tokenizer, start, learning_rate=learning_rate, seed=seed)
    for _ in range(start.RECIPE.epochs if epochs is None else epochs):
        history = trainer.epoch(batches)
        yield trainer.prompts(), history


class _Batches(Sequence[Batch]):
    """Batches that are made when they are asked for."""

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self._batch(i) for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._batch(index)

    @abstractmethod
    def _batch(self, index: int) -> Batch: ...


class Features(_Batches[TrainingBatch]):
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
        self._device, self._samples = pipeline.tips.device, samples
        self._starts = range(0, len(samples), batch_size)
        self._dtype = torch.float16 if cache else pipeline.tips.dtype
        height, width = pipeline.image_size
        patch, dim = pipeline.tips.config.vision.patch_size, pipeline.tips.config.vision.dim
        tokens = 2 + (height // patch) * (width // patch)
        self.nbytes = len(samples) * (tokens * dim * self._dtype.itemsize + height * width)
        settings = [pipeline.settings()[name] for name in ("dtype", "model", "image_size", "readout")]
        self.key = digest(
            [
                "features-v2",
                settings,
                batch_size,
                states(samples),
            ]
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

    def _batch(self, index: int) -> TrainingBatch:
        stored = load_file(self._path(index)) if self._folder else self._memory[index]
        stored = {name: tensor.to(self._device) for name, tensor in stored.items()}
        tokens = ImageTokens(*(stored[name] for name in ImageTokens._fields))
        start = self._starts[index]
        kinds = tuple(map(kind, self._samples[start : start + len(stored["labels"])]))
        return TrainingBatch(tokens, stored["masks"].float(), stored["labels"], kinds)

    def of_kind(self, name: str) -> "Features":
        """The same pictures, each defect of this one kind."""
        other = copy.copy(self)
        other._samples = [replace(sample, defect=name) if sample.label else sample for sample in self._samples]
        other.key = digest([self.key, name])
        return other

    def _path(self, index: int) -> Path:
        assert self._folder is not None
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


class Pixels(_Batches[PixelBatch]):
    """The pixels and masks of a data set, read anew whenever they are asked for: for methods that change the vision
    tower, whose tokens cannot be kept."""

    def __init__(self, pipeline: Pipeline, samples: Sequence[Sample], batch_size: int = 8) -> None:
        self._pipeline, self._samples, self._batch_size = pipeline, samples, batch_size
        settings = [pipeline.settings()[name] for name in ("dtype", "model", "image_size", "readout")]
        self.key = digest(
            [
                "pixels-v1",
                settings,
                batch_size,
                states(samples),
            ]
        )

    def __len__(self) -> int:
        return len(range(0, len(self._samples), self._batch_size))

    def _batch(self, index: int) -> PixelBatch:
        start = index * self._batch_size
        samples = self._samples[start : start + self._batch_size]
        [batch] = read_samples(self._pipeline, samples, self._batch_size)
        return batch


def train(
    pipeline: Pipeline,
    batches: Features | Pixels,
    output: str | Path,
    start: Method,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    shuffle: bool | None = None,
) -> Method:
    """Train `start`, by its published recipe where nothing else is given, and write it to the .safetensors file
    `output` after every epoch; returns the last prompts.

    Beside it are written `.log.jsonl` (a line a step), `.png` (the loss) and `.state` (for going on). After an
    interrupt the same call goes on behind the last whole epoch, and gives the same bytes as without; with more epochs
    it goes on from a finished training, with anything else changed it begins anew. Raises OptionError if `output` has
    another suffix.
    """
    output = prompts_file(output)
    epochs = start.RECIPE.epochs if epochs is None else epochs
    trainer = Trainer(pipeline.tips, pipeline.tokenizer, start, learning_rate=learning_rate, seed=seed, shuffle=shuffle)
    rate = trainer.optimizer.param_groups[0]["lr"]
    tensors = sha256(*(part for named in start.state_dict().items() for part in named))
    settings = [start.NAME, start.settings(), trainer.method.temperature, dict(start.metadata)]
    key = digest(["training-v2", batches.key, tensors, settings, rate, trainer.seed, trainer.shuffle])
    path = output.with_suffix(".state")
    history: list[list[dict[str, float]]] = []
    if path.is_file():
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            if state["key"] == key and state["epochs"] <= epochs:
                trainer.restore(state)
                history = state["history"]
        except Exception:  # torch raises nearly anything on a file that is not its own
            print(f"{path}: not a training state, begins anew", file=sys.stderr)
    while trainer.epochs < epochs:
        history.append(trainer.epoch(batches, f"epoch {trainer.epochs + 1}/{epochs}"))
        if not all(value.isfinite().all() for value in trainer.method.state_dict().values()):
            raise TrainingError(
                f"the prompts are no longer finite after epoch {trainer.epochs}: lower the learning rate"
            )
        buffer = io.BytesIO()
        torch.save({"key": key, "history": history, **trainer.state()}, buffer)
        write_atomically(path, buffer.getvalue())
        _write_training(trainer.prompts(), history, output)
    _write_training(trainer.prompts(), history, output)
    return trainer.prompts()


def _write_training(prompts: PromptMethod, history: list[list[dict[str, float]]], output: Path) -> None:
    prompts.save(output)
    lines = [
        to_json({"epoch": epoch, "step": step, **parts})
        for epoch, steps in enumerate(history, 1)
        for step, parts in enumerate(steps, 1)
    ]
    write_atomically(output.with_suffix(".log.jsonl"), "\n".join(lines) + "\n")
    totals = [[parts["total"] for parts in steps] for steps in history]
    write_atomically(output.with_suffix(".png"), figures.losses(totals, f"loss of {prompts.NAME}"))
