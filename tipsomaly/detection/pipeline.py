"""The one object that most people touch: pictures and a class name in, results out."""

import hashlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.data.images import ImageSource
from tipsomaly.detection import scoring
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.engine import _landed
from tipsomaly.detection.result import Result
from tipsomaly.detection.tiling import Tiles, Tiling
from tipsomaly.detection.views import Picture, Scores, View, Viewer, ahead
from tipsomaly.errors import ImageError, ModelError
from tipsomaly.models.catalogue import BACKBONES
from tipsomaly.models.device import choose_device, choose_dtype, to_cpu, to_device
from tipsomaly.models.folder import write_configs
from tipsomaly.models.hub import resolve
from tipsomaly.models.publish import upload
from tipsomaly.models.tips import ImageTokens, Tips
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.names import clean_class_name
from tipsomaly.prompts.find import find_prompts, released_prompts
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.prototypes import embed, prototypes
from tipsomaly.prompts.sentences import ENSEMBLES, PromptEnsemble, ensemble
from tipsomaly.prompts.strategy import MODES, Mode, no_prompts


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
        tile: int | None = None,
        overlap: float = 0.25,
        keep_aspect: bool = False,
    ) -> None:
        """`image_size` is the side, or (height, width), in pixels that pictures are resized to before the vision tower:
        multiples of the patch size. `domain` is a key of `prompts.ENSEMBLES` or your own prompts. `calibration`, which
        gives results a verdict, must have been made with the same settings. `tile`, `overlap` and `keep_aspect`: see
        `from_pretrained`.

        Raises ModelError for an option that cannot be used, or for prompts or a tokenizer that do not fit the towers.
        """
        self.tips, self.tokenizer, self.learned = tips, tokenizer, learned
        config = tips.config
        self.image_size = _image_size(image_size or config.vision.image_size, config.vision.patch_size)
        self.ensemble = ensemble(domain)
        if mode not in MODES:
            raise ModelError(f"unknown mode {mode!r}: choose {', '.join(MODES)}")
        self.mode: Mode = mode
        if not 0 <= sigma < 1000:
            raise ModelError(f"sigma must be a number of pixels from 0 to below 1000, not {sigma}")
        self.sigma = sigma
        self.tiling = None if tile is None else Tiling(tile, overlap)
        self.keep_aspect = keep_aspect
        self.viewer = Viewer(self.image_size, config.vision.patch_size, self.tiling, keep_aspect)
        if learned is None and mode != "fixed":
            raise ModelError(no_prompts("this model", mode))
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
        tile: int | None = None,
        overlap: float = 0.25,
        keep_aspect: bool = False,
    ) -> "Pipeline":
        """Load a model by name: "nano" (bundled: no network, CPU), a model folder, `org/name` on the Hub, or a released
        backbone such as "tips-l14-hr" (see `tipsomaly models`), which is fetched and converted once.

        revision: branch, tag or commit of a Hub repository.
        prompts: the name of a prompt set of the model, a .safetensors file, or `org/name[:set]` on the Hub. Without it
            the set named after the domain is taken, else the first one.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU if there is one.
        dtype: of the vision tower, "float32", "bfloat16" or "float16"; "auto" is bfloat16 on an NVIDIA GPU (float16 on
            one that is too old for it), float32 elsewhere; "fastest" is the same, but bfloat16 also on a CPU that has
            it and is found to be faster with it.
        image_size: side or (height, width) in pixels, multiples of 14; the model folder's default otherwise.
        calibration: thresholds from `tipsomaly calibrate`, for `Result.is_anomalous`.
        tile: side in pixels of the tiles that a larger picture is also cut into, each resized to `image_size`; the
            patches then come from the tiles, the global score from the whole picture. Ours, not the paper's.
        overlap: share of a tile's side that the next one covers too, 0 to 0.75.
        keep_aspect: resize to about as many patches as `image_size` has, but in the picture's own aspect ratio; without
            it pictures are squashed to `image_size`, as in the paper.

        Raises ModelError, in one line, for a model, prompt set or option that cannot be used.
        """
        device = choose_device(device)
        tower_dtype = choose_dtype(dtype, device)
        folder = resolve(model, revision, weights=False)  # prompts first: gigabytes are not fetched in vain
        if prompts is None and mode != "fixed":
            sets = sorted(folder.prompt_sets() or released_prompts(folder))
            if not sets:
                raise ModelError(no_prompts(folder.name or str(folder.path), mode))
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
            tile=tile,
            overlap=overlap,
            keep_aspect=keep_aspect,
        )

    def with_options(self, **options: Any) -> "Pipeline":
        """A pipeline with other options (those of the constructor) on the same weights and prototype cache; this one
        stays as it is. It is not calibrated, unless a calibration is among the options."""
        current = {
            "learned": self.learned,
            "image_size": self.image_size,
            "domain": self.ensemble,
            "mode": self.mode,
            "sigma": self.sigma,
            "tile": self.tiling and self.tiling.tile,
            "overlap": self.tiling.overlap if self.tiling else 0.25,
            "keep_aspect": self.keep_aspect,
        }
        other = Pipeline(self.tips, self.tokenizer, **{**current, **options})
        other._prototypes_of, other._sentences_of = self._prototypes_of, self._sentences_of
        return other

    def compile(self, batch_size: int = 16, backend: str = "inductor") -> float:
        """Compile the blocks of the vision tower with torch.compile, for batches of this many pictures at the input
        size, and return the seconds that it took. It pays on a GPU that is to see thousands of pictures; pipelines on
        the same weights share it. A batch of another shape is compiled, once, when it comes.

        Raises ModelError, and leaves the tower as it was, where it cannot be compiled.
        """
        start = time.perf_counter()
        blocks = self.tips.vision_encoder.blocks
        try:
            for block in blocks:
                block.compile(backend=backend)
            tokens = self.encode(torch.zeros(batch_size, 3, *self.image_size, dtype=torch.uint8))
            torch.sum(tokens.spatial).item()  # waits for a GPU
        except Exception as error:  # of many kinds, which torch's compiler defines and only then imports
            for block in blocks:
                block._compiled_call_impl = None
            raise ModelError(f"the model cannot be compiled here: {' '.join(str(error).split())[:200]}") from None
        return time.perf_counter() - start

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
            "tiling": self.tiling and [self.tiling.tile, self.tiling.overlap],
            "keep_aspect": self.keep_aspect or None,  # None, as in what was written before there was a choice
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
        maps: bool = False,
    ) -> Iterator[Result | ImageError]:
        """Results in order, for any number of pictures in bounded memory; decoding runs ahead of the model in threads.
        The model is given `batch_size` pictures, or tiles of them, at once.

        A picture that cannot be used raises ImageError after the results of those before it, or with errors="yield"
        takes its place in the stream as an ImageError. With `maps` the model's device makes all anomaly maps (but those
        of tiled pictures); otherwise each is made on the CPU when it is asked for.
        """
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, not {batch_size}")
        if errors not in ("raise", "yield"):
            raise ValueError(f"errors must be 'raise' or 'yield', not {errors!r}")
        name = clean_class_name(class_name)
        if self.calibration and self.calibration.class_name != name:
            raise ModelError(f"this calibration was made for the class {self.calibration.class_name!r}, not {name!r}")
        return self._stream(images, name, batch_size, errors, maps)

    def _stream(
        self, images: Iterable[ImageSource], class_name: str, batch_size: int, errors: str, maps: bool
    ) -> Iterator[Result | ImageError]:
        for view in self._scored(images, [self.prototypes(class_name)], batch_size, maps):
            if isinstance(view, ImageError):
                if errors == "raise":
                    raise view
                yield view
            elif view.is_last:
                yield self._result(view.picture, 0, class_name, self.mode)

    def compare(
        self, image: ImageSource, class_name: str = "object", own: PromptEnsemble | None = None
    ) -> dict[str, Result]:
        """The decoupled-prompt ablation (table 2a) on one picture, encoded once: the result under each of the modes
        "fixed", "learned" and "decoupled", and under "own", fixed prompts of your own, when they are given."""
        if self.learned is None:
            raise ModelError("a comparison needs learned prompts and this model has none")
        name = clean_class_name(class_name)
        columns = {mode: (self, mode) for mode in MODES}
        if own is not None:
            columns["own"] = (self.with_options(domain=own), "fixed")
        pairs = [pipe.prototypes(name, mode) for pipe, mode in columns.values()]
        for view in self._scored([image], pairs, batch_size=16):
            if isinstance(view, ImageError):
                raise view
        return {
            column: pipe._result(view.picture, i, name, mode)
            for i, (column, (pipe, mode)) in enumerate(columns.items())
        }

    def pixels(self, images: Iterable[ImageSource], batch_size: int = 16) -> Iterator[Tensor]:
        """Batches (B, 3, H, W) uint8 at the input size; decoding runs ahead in threads.

        Raises ImageError, naming the picture, for one that cannot be used, and ModelError for a pipeline that tiles
        pictures or keeps their aspect ratio.
        """
        if self.tiling or self.keep_aspect:
            raise ModelError("training and evaluation take whole pictures, squashed to the input size as in the paper")
        batch: list[Tensor] = []
        for picture in ahead(self.viewer.read, images, 2 * batch_size):
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
        pixels = to_device(pixels, self.device)
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        if self.device.type != "cpu":
            return self.tips.vision_encoder.layers(pixels, layers)
        # What a block of the tower writes should stay in the cache: 2,000 tokens for each thread.
        tokens = pixels.shape[2] * pixels.shape[3] // self.tips.config.vision.patch_size**2
        parts = pixels.split(max(1, 2000 * torch.get_num_threads() // max(tokens, 1)))
        encoded = [self.tips.vision_encoder.layers(part, layers) for part in parts]
        if len(encoded) == 1:
            return encoded[0]
        return [ImageTokens(*map(torch.cat, zip(*layer, strict=True))) for layer in zip(*encoded, strict=True)]

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.tips.vision_encoder.cls_token.device

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
            name = self.learned.metadata.get("name", "")
            name = name if re.fullmatch(r"\w[\w.-]*", name, re.ASCII) else "default"  # whoever made them, chose it
            self.learned.save(folder / "prompts" / f"{name}.safetensors")

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish what `save_pretrained` writes as the Hub repository `org/name`, made if it is not there, and return
        its address. The token is the one of `hf auth login` or HF_TOKEN unless given. Raises ModelError."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repository, private=private, token=token)

    def _scored(
        self, images: Iterable[ImageSource], pairs: list[tuple[Tensor, Tensor]], batch_size: int, maps: bool = False
    ) -> Iterator[View | ImageError]:
        """The views of all pictures in order, once they have their scores under each pair (G_f, G_l) of prototypes."""
        at_once = 2 if self.device.type == "cuda" else 1  # a GPU has its next batch before the last one is read
        running: deque[tuple[list[View | ImageError], torch.cuda.Event | None]] = deque()
        views = self.viewer.views(images, batch_size)
        while batch := list(islice(views, batch_size)):
            running.append((batch, self._launch(batch, pairs, maps)))
            if len(running) == at_once:
                yield from _landed(*running.popleft())
        for batch, done in running:
            yield from _landed(batch, done)

    @torch.inference_mode()
    def _launch(
        self, batch: list[View | ImageError], pairs: list[tuple[Tensor, Tensor]], maps: bool
    ) -> torch.cuda.Event | None:
        """Start to score a batch. On a GPU nothing waits here: the scores are there when the returned event is."""
        temperature = self.tips.config.temperature
        groups: dict[torch.Size, list[View]] = {}
        for view in batch:
            if not isinstance(view, ImageError):
                groups.setdefault(view.pixels.shape, []).append(view)
        for views in groups.values():
            tokens = self.encode(torch.stack([view.pixels for view in views]))
            both = torch.stack([tokens.object, tokens.spatial], dim=1)
            spatial = to_cpu(F.normalize(tokens.spatial.float(), dim=-1))
            for global_prototypes, local_prototypes in pairs:
                images = scoring.anomaly_probability(both, global_prototypes, temperature)
                patches = scoring.anomaly_probability(tokens.patches, local_prototypes, temperature)
                on_cpu = (spatial, to_cpu(images), to_cpu(patches))
                for view, on_device, *scores in zip(views, patches, *on_cpu, strict=True):
                    if maps and not view.picture.boxes:
                        size = (view.picture.height, view.picture.width)
                        made = scoring.anomaly_map(on_device, tuple(view.pixels.shape[1:]), size, self.sigma)
                        scores.append(to_cpu(made))
                    view.picture.scores.setdefault(view.index, []).append(Scores(*scores))
        return torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

    def _result(self, picture: Picture, pair: int, class_name: str, mode: Mode) -> Result:
        """What the views' scores under one pair of prototypes say of the picture."""
        whole, *tiles = (picture.scores[index][pair] for index in range(1 + len(picture.boxes)))
        object_score, global_score = whole.image.tolist()
        known = self.calibration
        calibration = known if known and (known.class_name, self.mode) == (class_name, mode) else None
        result = Result(
            object_score=object_score,
            global_score=global_score,
            patch_map=whole.patch_map.numpy().copy(),
            width=picture.width,
            height=picture.height,
            input_size=self.viewer.input_size(picture.width, picture.height),
            class_name=class_name,
            mode=mode,
            sigma=self.sigma,
            spatial_token=whole.spatial_token.numpy().copy(),
            note=picture.note,
            image_threshold=calibration and calibration.image_threshold,
            pixel_threshold=calibration and calibration.pixel_threshold,
            tiles=self._tiles(picture, tiles) if tiles else None,
            source=picture.source,
        )
        if whole.anomaly_map is not None:
            vars(result)["anomaly_map"] = whole.anomaly_map.numpy()
        return result

    def _tiles(self, picture: Picture, scores: list[Scores]) -> Tiles:
        rows = len(self.tiling.spans(picture.height))
        patch_maps = torch.stack([tile.patch_map for tile in scores]).unflatten(0, (rows, -1))
        left, top, right, bottom = picture.boxes[0]
        return Tiles(patch_maps.numpy(), self.tiling, self.viewer.input_size(right - left, bottom - top))


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
