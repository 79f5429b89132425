"""The one object that most people touch: pictures and a class name in, results out."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly import scoring
from tipsomaly.calibration import Calibration
from tipsomaly.catalogue import BACKBONES, ModelError
from tipsomaly.hub import find_prompts, released_prompts, resolve, upload, write_configs
from tipsomaly.images import ImageError, ImageSource, load_image, to_pixels
from tipsomaly.prompts import ENSEMBLES, LearnedPrompts, PromptEnsemble, clean_class_name, embed, ensemble, prototypes
from tipsomaly.result import Result
from tipsomaly.tips import ImageTokens, Tips
from tipsomaly.tokenizer import Tokenizer

Mode = Literal["fixed", "learned", "decoupled"]
MODES: tuple[Mode, ...] = ("fixed", "learned", "decoupled")
"""Which prompts make the prototypes (table 2a): fixed ones for both scores, learned ones for both, or, as the paper
proposes, fixed ones for the image score and learned ones for the patch map."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Pipeline:
    """Zero-shot anomaly detection on single pictures. Safe to call from several threads at once.

    >>> pipe = Pipeline.from_pretrained()
    >>> result = pipe("board.png", class_name="pcb")
    >>> result.score, result.anomaly_map
    """

    def __init__(
        self,
        tips: Tips,
        tokenizer: Tokenizer,
        learned: LearnedPrompts | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        domain: str | PromptEnsemble = "industrial",
        mode: Mode = "decoupled",
        sigma: float = scoring.SIGMA,
        calibration: Calibration | str | Path | None = None,
    ) -> None:
        """`image_size` is the side, or (height, width), in pixels that pictures are resized to before the vision tower:
        multiples of the patch size. `domain` is a key of `prompts.ENSEMBLES` or your own prompts. `calibration`, which
        gives results a verdict, must have been made with the same settings."""
        self.tips, self.tokenizer, self.learned = tips, tokenizer, learned
        config = tips.config
        self.image_size = _image_size(image_size or config.vision.image_size, config.vision.patch_size)
        self.ensemble = ensemble(domain)
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: choose {', '.join(MODES)}")
        self.mode: Mode = mode
        if not 0 <= sigma < 1000:
            raise ValueError(f"sigma must be a number of pixels, 0 or more, not {sigma}")
        self.sigma = sigma
        if learned is None and mode != "fixed":
            raise ModelError(_no_prompts("this model", mode))
        if learned is not None and learned.normal.shape[1] != config.text.dim:
            made_for = learned.metadata.get("backbone", "another model")
            width = learned.normal.shape[1]
            raise ModelError(f"these prompts are {width} wide (made for {made_for}), the model is {config.text.dim}")
        if tokenizer.vocab_size > config.text.vocab_size:
            raise ModelError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {config.text.vocab_size}")
        if isinstance(calibration, str | Path):
            calibration = Calibration.load(calibration)
        self.calibration = calibration
        if calibration:
            calibration.check(self.settings())
        self._prototypes_of = lru_cache(maxsize=1024)(partial(_compute_prototypes, tips, tokenizer))
        self._sentences_of = lru_cache(maxsize=64)(partial(_embed_sentences, tips, tokenizer))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "nano",
        *,
        revision: str | None = None,
        prompts: str | Path | LearnedPrompts | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        image_size: int | tuple[int, int] | None = None,
        domain: str | PromptEnsemble = "industrial",
        mode: Mode = "decoupled",
        sigma: float = scoring.SIGMA,
        calibration: Calibration | str | Path | None = None,
    ) -> "Pipeline":
        """Load a model by name: "nano" (bundled: no network, CPU), a model folder, `org/name` on the Hub, or a released
        backbone such as "tips-l14-hr" (see `tipsomaly models`), which is fetched and converted once.

        revision: branch, tag or commit of a Hub repository.
        prompts: the name of a prompt set of the model, a .safetensors file, or `org/name[:set]` on the Hub. Without it
            the set named after the domain is taken, else the first one.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU if there is one.
        dtype: of the vision tower, "float32", "bfloat16" or "float16"; "auto" is float32 on CPU, bfloat16 on GPU.
        image_size: side or (height, width) in pixels, multiples of 14; the model folder's default otherwise.
        calibration: thresholds from `tipsomaly calibrate`, for `Result.is_anomalous`.

        Raises ModelError, in one line, for a model, prompt set or option that cannot be used.
        """
        device = choose_device(device)
        tower_dtype = choose_dtype(dtype, device)
        folder = resolve(model, revision, weights=False)  # prompts first: gigabytes are not fetched in vain
        if prompts is None and mode != "fixed":
            sets = sorted(folder.prompt_sets() or released_prompts(folder))
            if not sets:
                raise ModelError(_no_prompts(folder.name or str(folder.path), mode))
            prompts = domain if domain in sets else sets[0]
        if isinstance(prompts, str | Path):
            try:
                prompts = LearnedPrompts.load(find_prompts(folder, prompts))
            except ValueError as error:
                raise ModelError(str(error)) from None
        made_for = prompts.metadata.get("backbone") if prompts else None
        if made_for in BACKBONES and folder.name in BACKBONES and made_for != folder.name:
            raise ModelError(f"these prompts were trained on {made_for}, the model is {folder.name}")
        folder = resolve(model, revision)
        tips = folder.read_tips(device, tower_dtype)
        return cls(
            tips,
            folder.read_tokenizer(tips.config.text.max_length),
            prompts,
            image_size=image_size or folder.read_image_size(tips.config),
            domain=domain,
            mode=mode,
            sigma=sigma,
            calibration=calibration,
        )

    def with_options(self, **options) -> "Pipeline":
        """A pipeline with other options (those of the constructor) on the same weights and prototype cache; this one
        stays as it is. It is not calibrated, unless a calibration is among the options."""
        current = {
            "learned": self.learned,
            "image_size": self.image_size,
            "domain": self.ensemble,
            "mode": self.mode,
            "sigma": self.sigma,
        }
        other = Pipeline(self.tips, self.tokenizer, **{**current, **options})
        other._prototypes_of, other._sentences_of = self._prototypes_of, self._sentences_of
        return other

    def settings(self) -> dict[str, Any]:
        """What a score depends on besides the picture and its class, for JSON; weights and prompts as their SHA-256."""
        prompts = self.learned and (self.learned.normal, self.learned.abnormal)
        domains = [name for name, known in ENSEMBLES.items() if known == self.ensemble]
        return {
            "dtype": str(self.tips.vision_encoder.cls_token.dtype).removeprefix("torch."),
            "model": _sha256(repr(self.tips.config), self.tokenizer.model, *self.tips.state_dict().values()),
            "prompts": _sha256(self.learned.ensemble, *prompts) if prompts and self.mode != "fixed" else None,
            "domain": domains[0] if domains else _sha256(repr(self.ensemble)),
            "mode": self.mode,
            "image_size": list(self.image_size),
            "sigma": self.sigma,
        }

    @overload
    def __call__(self, images: ImageSource, class_name: str = ..., batch_size: int = ...) -> Result: ...
    @overload
    def __call__(self, images: list[ImageSource], class_name: str = ..., batch_size: int = ...) -> list[Result]: ...
    def __call__(self, images, class_name="object", batch_size=16):
        """Score one picture, or a list of them. A picture is a path, encoded bytes, a PIL image or an array.

        Raises ImageError, naming the picture, for one that cannot be used.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, class_name, batch_size=batch_size))
        return next(self.stream([images], class_name))

    def stream(
        self,
        images: Iterable[ImageSource],
        class_name: str = "object",
        *,
        batch_size: int = 16,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Result | ImageError]:
        """Results in order, for any number of pictures in bounded memory; decoding runs ahead of the model in threads.

        A picture that cannot be used raises ImageError after the results of those before it, or with errors="yield"
        takes its place in the stream as an ImageError.
        """
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, not {batch_size}")
        if errors not in ("raise", "yield"):
            raise ValueError(f"errors must be 'raise' or 'yield', not {errors!r}")
        name = clean_class_name(class_name)
        if self.calibration and self.calibration.class_name != name:
            raise ModelError(f"this calibration was made for the class {self.calibration.class_name!r}, not {name!r}")
        return self._stream(images, name, batch_size, errors)

    def _stream(
        self, images: Iterable[ImageSource], class_name: str, batch_size: int, errors: str
    ) -> Iterator[Result | ImageError]:
        batch: list[_Picture | ImageError] = []
        for picture in self._decoded(images, ahead=2 * batch_size):
            batch.append(picture)
            failed = isinstance(picture, ImageError) and errors == "raise"
            if failed or sum(isinstance(p, _Picture) for p in batch) == batch_size:
                yield from self._finish(batch[:-1] if failed else batch, class_name)
                batch = []
            if failed:
                raise picture
        yield from self._finish(batch, class_name)

    def compare(
        self, image: ImageSource, class_name: str = "object", own: PromptEnsemble | None = None
    ) -> dict[str, Result]:
        """The decoupled-prompt ablation (table 2a) on one picture, encoded once: the result under each of the modes
        "fixed", "learned" and "decoupled", and under "own", fixed prompts of your own, when they are given."""
        if self.learned is None:
            raise ModelError("a comparison needs learned prompts and this model has none")
        name = clean_class_name(class_name)
        picture = self._read(image)
        tokens = self.encode(picture.pixels[None])
        results = {mode: self._score(tokens, [picture], name, mode)[0] for mode in MODES}
        if own is not None:
            results["own"] = self.with_options(domain=own)._score(tokens, [picture], name, "fixed")[0]
        return results

    def pixels(self, images: Iterable[ImageSource], batch_size: int = 16) -> Iterator[Tensor]:
        """Batches (B, 3, H, W) uint8 at the input size; decoding runs ahead in threads.

        Raises ImageError, naming the picture, for one that cannot be used.
        """
        batch: list[Tensor] = []
        for picture in self._decoded(images, ahead=2 * batch_size):
            if isinstance(picture, ImageError):
                raise picture
            batch.append(picture.pixels)
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> ImageTokens:
        """(B, 3, H, W) uint8 pixels, or floats in [0, 1], to the tokens of the vision tower."""
        return self.encode_layers(pixels, [-1])[0]

    @torch.inference_mode()
    def encode_layers(self, pixels: Tensor, layers: Sequence[int]) -> list[ImageTokens]:
        """The same after each of these blocks of the tower (0-based, negative from the end)."""
        pixels = pixels.to(self.tips.vision_encoder.cls_token.device)
        return self.tips.vision_encoder.layers(pixels if pixels.is_floating_point() else pixels.float() / 255, layers)

    def prototypes(self, class_name: str = "object", mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """G_f for the image score and G_l for the patch map, each (2, D) float32, normal then abnormal. Cached."""
        mode = mode or self.mode
        name = clean_class_name(class_name)
        return (
            self._prototypes_of(self.learned) if mode == "learned" else self._prototypes_of(self.ensemble, name),
            self._prototypes_of(self.ensemble, name) if mode == "fixed" else self._prototypes_of(self.learned),
        )

    @torch.inference_mode()
    def similarities(self, result: Result) -> tuple[dict[str, float], dict[str, float]]:
        """What the global score comes from: (normal, abnormal) fixed sentences, each with the cosine, in [-1, 1],
        of its embedding with the result's spatial token; the most similar first."""
        embedded = self._sentences_of(self.ensemble, result.class_name)
        return tuple(
            dict(sorted(zip(texts, (e @ result.spatial_token).tolist(), strict=True), key=lambda pair: -pair[1]))
            for texts, e in zip(self.ensemble.sentences(result.class_name), embedded, strict=True)
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that `from_pretrained` and `transformers.Tipsv2Model` read."""
        from safetensors.torch import save_file

        folder = Path(folder)
        write_configs(folder, self.tips.config, self.image_size)
        tensors = {name: value.cpu().contiguous() for name, value in self.tips.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.model").write_bytes(self.tokenizer.model)
        if self.learned is not None:
            self.learned.save(folder / "prompts" / f"{self.learned.metadata.get('name', 'default')}.safetensors")

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish what `save_pretrained` writes as the Hub repository `org/name`, made if it is not there, and return
        its address. The token is the one of `hf auth login` or HF_TOKEN unless given. Raises ModelError."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repository, private=private, token=token)

    @torch.inference_mode()
    def _score(self, tokens: ImageTokens, pictures: list["_Picture"], class_name: str, mode: Mode) -> list[Result]:
        global_prototypes, local_prototypes = self.prototypes(class_name, mode)
        temperature = self.tips.config.temperature
        both = torch.stack([tokens.object, tokens.spatial], dim=1)
        image_scores = scoring.anomaly_probability(both, global_prototypes, temperature).cpu().tolist()
        patch_maps = scoring.anomaly_probability(tokens.patches, local_prototypes, temperature).cpu().numpy()
        spatial = F.normalize(tokens.spatial.float(), dim=-1).cpu().numpy()
        known = self.calibration
        calibration = known if known and (known.class_name, self.mode) == (class_name, mode) else None
        return [
            Result(
                object_score=scores[0],
                global_score=scores[1],
                patch_map=np.array(patch_map),
                width=picture.width,
                height=picture.height,
                input_size=self.image_size,
                class_name=class_name,
                mode=mode,
                sigma=self.sigma,
                spatial_token=spatial_token,
                note=picture.note,
                image_threshold=calibration and calibration.image_threshold,
                pixel_threshold=calibration and calibration.pixel_threshold,
                source=picture.source,
            )
            for picture, scores, patch_map, spatial_token in zip(
                pictures, image_scores, patch_maps, spatial, strict=True
            )
        ]

    def _finish(self, batch: list["_Picture | ImageError"], class_name: str) -> Iterator[Result | ImageError]:
        pictures = [p for p in batch if isinstance(p, _Picture)]
        if pictures:
            tokens = self.encode(torch.stack([p.pixels for p in pictures]))
            results = iter(self._score(tokens, pictures, class_name, self.mode))
        for p in batch:
            yield p if isinstance(p, ImageError) else next(results)

    def _read(self, source: ImageSource) -> "_Picture":
        loaded = load_image(source)
        width, height = loaded.image.size
        return _Picture(to_pixels(loaded.image, self.image_size), width, height, loaded.note, source)

    def _decoded(self, images: Iterable[ImageSource], ahead: int) -> Iterator["_Picture | ImageError"]:
        def outcome(future: "Future[_Picture]") -> "_Picture | ImageError":
            error = future.exception()
            if error is None or isinstance(error, ImageError):
                return error or future.result()
            raise error

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
            pending: deque[Future[_Picture]] = deque()
            try:
                for image in images:
                    pending.append(pool.submit(self._read, image))
                    if len(pending) >= ahead:
                        yield outcome(pending.popleft())
                while pending:
                    yield outcome(pending.popleft())
            finally:
                for future in pending:
                    future.cancel()


@torch.inference_mode()
def _compute_prototypes(
    tips: Tips, tokenizer: Tokenizer, prompts: PromptEnsemble | LearnedPrompts, class_name: str = "object"
) -> Tensor:
    if isinstance(prompts, LearnedPrompts):
        return prototypes(tips.text_encoder, tokenizer, prompts.sentences(), (prompts.normal, prompts.abnormal))
    return prototypes(tips.text_encoder, tokenizer, prompts.sentences(class_name))


@torch.inference_mode()
def _embed_sentences(
    tips: Tips, tokenizer: Tokenizer, prompts: PromptEnsemble, class_name: str
) -> tuple[np.ndarray, np.ndarray]:
    normal, abnormal = prompts.sentences(class_name)
    embedded = embed(tips.text_encoder, tokenizer, normal + abnormal).cpu().numpy()
    return embedded[: len(normal)], embedded[len(normal) :]


@dataclass(frozen=True, eq=False)
class _Picture:
    """A decoded picture at the model's input size, and what its result must remember."""

    pixels: Tensor
    width: int
    height: int
    note: str | None
    source: ImageSource


def _no_prompts(model: str, mode: Mode) -> str:
    return (
        f"the mode {mode!r} needs learned prompts and {model} has none: pass prompts=..., make some with "
        "`tipsomaly train`, or ask for mode='fixed', which localizes poorly (table 2a of the paper)"
    )


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """A GPU if "auto" and there is one; ModelError for a device that this machine has not."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has it, float16 on an older one, float32 elsewhere, if "auto"."""
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _sha256(*parts: str | bytes | Tensor) -> str:
    """Of the bytes of all parts, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()


def _image_size(size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if side < patch or side % patch:
            near = max(patch, round(side / patch) * patch)
            raise ModelError(f"the image size must be a multiple of {patch}, not {side}: try {near}")
    return height, width
