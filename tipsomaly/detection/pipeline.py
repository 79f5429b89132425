"""The one object that most people touch: pictures and a class name in, results out."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, overload

import torch
from torch import Tensor

from tipsomaly.data.images import ImageSource
from tipsomaly.detection import scoring
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.combination import Use
from tipsomaly.detection.detector import Detectors, PromptDetector
from tipsomaly.detection.engine import Engine, check_batch_size
from tipsomaly.detection.leave_one_out import Normal, fit
from tipsomaly.detection.mutual import MutualDetector
from tipsomaly.detection.reference_detector import MAX_NORMALS, ReferenceDetector, ReferenceSource, observe
from tipsomaly.detection.references import ReferenceOptions, References
from tipsomaly.detection.result import Result, joined
from tipsomaly.detection.settings import Settings
from tipsomaly.detection.views import Picture, Viewer
from tipsomaly.errors import ImageError, ModelError, OptionError, one_line
from tipsomaly.files import expand, staged_folder
from tipsomaly.models.catalogue import BACKBONES
from tipsomaly.models.device import choose_device, choose_dtype
from tipsomaly.models.folder import ModelFolder, write_model
from tipsomaly.models.hub import resolve
from tipsomaly.models.publish import upload
from tipsomaly.models.tips import ImageTokens, LayerTokens, Tips
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.names import clean_class_name
from tipsomaly.prompts.find import default_prompts, read_prompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.methods import ready_method
from tipsomaly.prompts.prototypes import pair
from tipsomaly.prompts.sentences import PromptEnsemble
from tipsomaly.prompts.strategy import MODES, Mode, no_prompts

BATCH_SIZE = 16
"""Pictures, or tiles of them, that the model is given at once unless told otherwise."""

UNKNOWN = "object"
"""What a picture is taken for whose class name has a word that the model does not know."""


class Pipeline:
    """Zero-shot anomaly detection on single pictures. Safe to call from several threads at once.

    >>> pipe = Pipeline.from_pretrained()
    >>> result = pipe("board.png", class_name="pcb")  # doctest: +SKIP
    >>> result.score, result.anomaly_map  # doctest: +SKIP
    """

    def __init__(
        self,
        tips: Tips,
        tokenizer: Tokenizer,
        prompts: PromptMethod | None = None,
        *,
        calibration: Calibration | str | Path | None = None,
        reference: References | str | Path | Sequence[ImageSource] | None = None,
        evidence: Use | None = None,
        reference_options: ReferenceOptions | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `Settings`; without an image size it is the one that the tower was trained at, without
        a mode that of the prompts' method: "decoupled" for Tipsomaly's. `calibration`, which gives results a verdict,
        must have been made with the same settings, and so must `reference`, unless it is a folder of normal pictures or
        a list of them: these are remembered, as `reference_options` say, when a class is first asked for. `evidence`
        forces what scores: "prompts", "memory" or "both".

        Raises ModelError for prompts or a tokenizer that do not fit the towers, OptionError for an option that cannot
        be used.
        """
        self.tips, self.tokenizer, self.prompts = tips, tokenizer, prompts
        self._folder: ModelFolder | None = None  # where more prompt sets are, if it was loaded from somewhere
        vision, text = tips.config.vision, tips.config.text
        size = options.pop("image_size", None) or vision.image_size
        if options.get("mode") is None:
            options["mode"] = prompts.MODE if prompts else "decoupled"
        self.options = Settings(size, patch_size=vision.patch_size).but(**options)
        viewer = Viewer(self.image_size, vision.patch_size, self.options.tiling, self.options.keep_aspect)
        self.engine = Engine(tips, viewer, self.options.sigma)
        if prompts is None and self.mode != "fixed":
            raise ModelError(no_prompts("this model", self.mode))
        if prompts is not None:
            prompts.check(tips.config)
            if prompts.PER_IMAGE and self.options.tile and self.mode != "fixed":
                raise OptionError(
                    f"prompts of {prompts.NAME} depend on the whole picture: they cannot be used with tiles"
                )
        self._method = ready_method(prompts, self.options.kinds, self.device)
        if tokenizer.vocab_size > text.vocab_size:
            raise ModelError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {text.vocab_size}")
        if isinstance(calibration, str | Path):
            calibration = Calibration.load(calibration)
        self.calibration = calibration
        if reference is None and (evidence or reference_options):
            raise OptionError("evidence and reference options go with a reference")
        self.reference = None if reference is None else ReferenceSource(reference, evidence, reference_options)
        if self.reference and isinstance(self.reference.source, References):
            self.reference.source.check(self.settings(), vision.dim)
        if calibration:
            calibration.check(self.settings())
        self._detectors = Detectors(tips, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "nano",
        *,
        revision: str | None = None,
        prompts: str | Path | PromptMethod | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        calibration: Calibration | str | Path | None = None,
        **options: Any,
    ) -> "Pipeline":
        """Load a model by name: "nano" (bundled: no network, CPU), a model folder, `org/name` on the Hub, or a released
        backbone such as "tips-l14-hr" (see `tipsomaly models`), which is fetched and converted once.

        revision: branch, tag or commit of a Hub repository.
        prompts: the name of a prompt set of the model ("dapo", "cops"), a .safetensors file, or `org/name[:set]` on the
            Hub, of any method. Without it the set named after the domain is taken, else the first one.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU if there is one.
        dtype: of the vision tower, "float32", "bfloat16" or "float16"; "auto" is bfloat16 on an NVIDIA GPU (float16 on
            one that is too old for it), float32 elsewhere; "fastest" is the same, but bfloat16 also on a CPU that has
            it and is found to be faster with it.
        calibration: thresholds from `tipsomaly calibrate`, for `Result.is_anomalous`.
        options: `reference`, `evidence` and `reference_options`, see `Pipeline`; `image_size` (default: the model
            folder's), `domain`, `mode`, `kinds`, `sigma`, `tile`, `overlap` and `keep_aspect`, see `Settings`.

        Raises ModelError, in one line, for a model, prompt set or option that cannot be used.
        """
        device = choose_device(device)
        tower_dtype = choose_dtype(dtype, device)
        folder = resolve(model, revision, weights=False)  # prompts first: gigabytes are not fetched in vain
        mode, domain = options.get("mode") or "decoupled", options.get("domain", "industrial")
        if prompts is None and mode != "fixed":
            prompts = default_prompts(folder, domain)
            if prompts is None:
                raise ModelError(no_prompts(folder.name or str(folder.path), mode))
        elif isinstance(prompts, str | Path):
            prompts = read_prompts(folder, prompts)
        made_for = prompts.metadata.get("backbone") if prompts else None
        if made_for in BACKBONES and folder.name in BACKBONES and made_for != folder.name:
            raise ModelError(f"these prompts were trained on {made_for}, the model is {folder.name}")
        folder = resolve(model, revision)
        tips = folder.read_tips(device, tower_dtype)
        options["image_size"] = options.get("image_size") or folder.read_image_size(tips.config)
        tokenizer = folder.read_tokenizer(tips.config.text.max_length)
        pipe = cls(tips, tokenizer, prompts, calibration=calibration, **options)
        pipe._folder = folder
        return pipe

    def with_options(self, **options: Any) -> "Pipeline":
        """A pipeline with other options (those of the constructor) on the same weights and prototype cache; this one
        stays as it is. It is not calibrated, unless a calibration is among the options, and has no references that were
        made, unless they are; normal pictures stay."""
        prompts, calibration = options.pop("prompts", self.prompts), options.pop("calibration", None)
        if prompts is not self.prompts:
            options = {
                "mode": prompts.MODE if prompts and self.mode != "fixed" else self.mode,
                "kinds": None,
                **options,
            }
        known, names = self.reference, ("reference", "evidence", "reference_options")
        if known and "reference" not in options and not isinstance(known.source, References):
            options = {**dict(zip(names, (known.source, known.evidence, known.options), strict=True)), **options}
        ours = {name: options.pop(name, None) for name in names}
        settings = self.options.but(**options)
        other = Pipeline(self.tips, self.tokenizer, prompts, calibration=calibration, **ours, **settings.options())
        if prompts is self.prompts and settings.kinds == self.options.kinds:
            other._method = self._method
        other._detectors = self._detectors
        other._folder = self._folder
        return other

    def methods(self) -> dict[str, "Pipeline"]:
        """This pipeline, and one for each other method that the model's folder has prompts of, by the method's name.
        They share weights. Raises ModelError."""
        others = self._folder.prompt_sets() if self._folder else ()
        found = {self.method_name: self}
        for name in sorted(others):
            prompts = read_prompts(self._folder, name)
            if prompts.NAME not in found:
                found[prompts.NAME] = self.with_options(prompts=prompts, mode=prompts.MODE)
        return found

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that pictures are resized to."""
        return self.options.size

    @property
    def mode(self) -> Mode:
        """Which prompts make which prototypes (table 2a)."""
        return self.options.mode

    @property
    def method_name(self) -> str:
        """The method of the prompts that score; fixed ones are Tipsomaly's."""
        return self.prompts.NAME if self.prompts and self.mode != "fixed" else "tipsomaly"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of defects that results tell apart; none with prompts that know none."""
        return self._method.kinds if self._method and self.mode != "fixed" else ()

    @property
    def domain(self) -> PromptEnsemble:
        """The fixed prompts."""
        return self.options.ensemble

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.engine.device

    def compile(self, batch_size: int = BATCH_SIZE, backend: str = "inductor") -> float:
        """Compile the blocks of the vision tower with torch.compile, for batches of this many pictures at the input
        size, and return the seconds that it took. It pays on a GPU that is to see thousands of pictures; pipelines on
        the same weights share it. A batch of another shape is compiled, once, when it comes.

        Raises ModelError, and leaves the tower as it was, where it cannot be compiled.
        """
        return self.engine.compile(batch_size, backend)

    def settings(self) -> dict[str, Any]:
        """What a score depends on besides the picture and its class, for JSON; weights and prompts as their SHA-256."""
        learned = self.prompts if self.mode != "fixed" else None
        return {
            **self.options.record(),
            "dtype": str(self.tips.vision_encoder.cls_token.dtype).removeprefix("torch."),
            "model": self.tips.digest(self.tokenizer.model),
            "prompts": learned and learned.digest(),
            "reference": self.reference and self.reference.digest(),
        }

    @overload
    def __call__(self, images: list[ImageSource], class_name: str = ..., batch_size: int = ...) -> list[Result]: ...
    @overload
    def __call__(self, images: ImageSource, class_name: str = ..., batch_size: int = ...) -> Result: ...
    def __call__(
        self, images: ImageSource | list[ImageSource], class_name: str = "object", batch_size: int = BATCH_SIZE
    ) -> Result | list[Result]:
        """Score one picture, or a list of them. A picture is a path, encoded bytes, a PIL image or an array.

        Raises ImageError, naming the picture, for one that cannot be used.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, class_name, batch_size=batch_size))
        return next(self.stream([images], class_name, batch_size=batch_size))

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        class_name: str = ...,
        *,
        batch_size: int = ...,
        errors: Literal["raise"] = ...,
        maps: bool = ...,
        together: bool = ...,
    ) -> Iterator[Result]: ...
    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        class_name: str = ...,
        *,
        batch_size: int = ...,
        errors: Literal["yield"],
        maps: bool = ...,
        together: bool = ...,
    ) -> Iterator[Result | ImageError]: ...
    def stream(
        self,
        images: Iterable[ImageSource],
        class_name: str = "object",
        *,
        batch_size: int = BATCH_SIZE,
        errors: Literal["raise", "yield"] = "raise",
        maps: bool = False,
        together: bool = False,
    ) -> Iterator[Result | ImageError]:
        """Results in order, for any number of pictures in bounded memory; decoding runs ahead of the model in threads.
        The model is given `batch_size` pictures, or tiles of them, at once.

        A picture that cannot be used raises ImageError after the results of those before it, or with errors="yield"
        takes its place in the stream as an ImageError. What `images` itself raises comes after the results of what it
        gave. With `maps` the model's device makes all anomaly maps (but those of tiled pictures); otherwise each is
        made on the CPU when it is asked for.

        With `together` the pictures, unlabelled ones of one product, also score each other (see `detection.mutual`).
        They are encoded before the first result, and again for it; at most MAX_NORMALS of them, evenly spread, are what
        all are compared with. A note says so, and whether they are too varied.
        """
        check_batch_size(batch_size)
        if together and self.reference:
            raise OptionError("pictures are compared with each other or with a reference, not with both")
        if errors not in ("raise", "yield"):
            raise OptionError(f"errors must be 'raise' or 'yield', not {errors!r}")
        return self._stream(images, *self._checked_class(class_name), batch_size, errors, maps, together)

    def _checked_class(self, class_name: str) -> tuple[str, str | None]:
        """The class in words, and a note if the model does not know them; ModelError if the calibration is for another
        class."""
        name = clean_class_name(class_name)
        if self.calibration and self.calibration.class_name != name:
            made_for = self.calibration.class_name
            raise ModelError(f"this calibration was made for the class {made_for!r}, not {name!r}")
        if not (unknown := self.tokenizer.unknown(name)):
            return name, None
        model = self._folder.name if self._folder and self._folder.name else "this model"
        words = f"the word{'s' * (len(unknown) > 1)} {one_line(', '.join(unknown), 60)}"
        return UNKNOWN, f"{model} does not know {words}: taken for {UNKNOWN!r}"

    def _stream(
        self,
        images: Iterable[ImageSource],
        class_name: str,
        note: str | None,
        batch_size: int,
        errors: str,
        maps: bool,
        together: bool,
    ) -> Iterator[Result | ImageError]:
        scorer: PromptDetector | ReferenceDetector | MutualDetector = self.scorer(class_name)
        if together:
            images = list(images)
            scorer = MutualDetector(self.detector(class_name), self._pile(images, class_name, batch_size))
            note = joined(note, scorer.note)
        for view in self.engine.scored(images, [scorer], batch_size, maps):
            if isinstance(view, ImageError):
                if errors == "raise":
                    raise view
                yield view
            elif view.is_last:
                yield self._result(view.picture, 0, class_name, note, "both" if together else "prompts")

    def _pile(self, images: Sequence[ImageSource], class_name: str, batch_size: int) -> list[Normal]:
        """What the model says of evenly spread pictures that can be read."""
        step, found = max(1, -(-len(images) // MAX_NORMALS)), []
        for image in images[::step]:
            with suppress(ImageError):  # it is said when it is its turn
                found += observe(self.engine, [image], self.detector(class_name), ReferenceOptions(), batch_size)
        return found

    def compare(
        self, image: ImageSource, class_name: str = "object", own: PromptEnsemble | None = None
    ) -> dict[str, Result]:
        """The decoupled-prompt ablation (table 2a) on one picture, encoded once: the result under each of the modes
        "fixed", "learned" and "decoupled", under "own", fixed prompts of your own, when they are given, and under each
        other method that the model's folder has prompts of, "dapo" and "cops"."""
        prompts = self.prompts or (self._folder and default_prompts(self._folder, self.options.domain))
        if prompts is None:
            raise ModelError("a comparison needs learned prompts and this model has none")
        (name, note), known = self._checked_class(class_name), self.calibration
        columns = {
            mode: self.with_options(
                prompts=prompts, mode=mode, reference=None, calibration=known if mode == self.mode else None
            )
            for mode in MODES
        }
        if own is not None:
            columns["own"] = self.with_options(domain=own, mode="fixed", reference=None)
        if not self.options.tile:
            columns |= {method: pipe for method, pipe in self.methods().items() if method != prompts.NAME}
        if found := self.references(name):
            remembered: tuple[Use, ...] = ("memory", "both")
            columns |= {use: self.with_options(reference=found.using(use)) for use in remembered}
        detectors = [pipe.scorer(name) for pipe in columns.values()]
        for view in self.engine.scored([image], detectors, BATCH_SIZE):
            if isinstance(view, ImageError):
                raise view
        return {column: pipe._result(view.picture, i, name, note) for i, (column, pipe) in enumerate(columns.items())}

    def pixels(self, images: Iterable[ImageSource], batch_size: int = BATCH_SIZE) -> Iterator[Tensor]:
        """See `Engine.pixels`."""
        return self.engine.pixels(images, batch_size)

    def encode(self, pixels: Tensor) -> ImageTokens:
        """See `Engine.encode`."""
        return self.engine.encode(pixels)

    def encode_layers(
        self, pixels: Tensor, layers: Sequence[int], learned: LayerTokens | None = None
    ) -> list[ImageTokens]:
        """See `Engine.encode_layers`."""
        return self.engine.encode_layers(pixels, layers, learned)

    def prototypes(self, class_name: str = "object", mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """G_f for the image score, (2, D), and G_l for the patch map, (1 + K, D) float32, the normal one first. Cached.
        Raises OptionError for prompts that have others for each picture."""
        detector = self.detector(class_name, mode)
        if detector.image.prototypes is None or detector.patches.prototypes is None:
            raise OptionError(f"prompts of {self._method and self._method.NAME} have no prototypes without a picture")
        return pair(detector.image.prototypes), detector.patches.prototypes

    def detector(self, class_name: str = "object", mode: Mode | None = None) -> PromptDetector:
        """What scores pictures of a class; its prototypes are cached. A class name with a word that the model does not
        know counts as "object"."""
        return self._detectors.detector(mode or self.mode, self.domain, self._known(class_name), self._method)

    def _known(self, class_name: str) -> str:
        name = clean_class_name(class_name)
        return UNKNOWN if self.tokenizer.unknown(name) else name

    def scorer(self, class_name: str = "object") -> PromptDetector | ReferenceDetector:
        """What scores pictures of a class: the prompts, with a reference together with the normal pictures."""
        found = self.references(class_name)
        return ReferenceDetector(self.detector(class_name), found, self.device) if found else self.detector(class_name)

    def references(self, class_name: str = "object") -> References | None:
        """What the normal pictures say, for a class; of pictures it is made when it is first asked for."""
        return self.reference and self.reference.of(self._known(class_name), self.make_references)

    def make_references(
        self,
        images: Sequence[ImageSource],
        class_name: str = "object",
        options: ReferenceOptions | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> References:
        """Remember normal pictures of a class, of more than MAX_NORMALS as many evenly spread ones, for `reference=`.

        Raises ImageError, naming the picture, for one that cannot be used."""
        options, name = options or ReferenceOptions(), self._known(class_name)
        if len(images) > MAX_NORMALS:
            images = [images[i * len(images) // MAX_NORMALS] for i in range(MAX_NORMALS)]
        return self.fit_references(
            list(observe(self.engine, images, self.detector(name), options, batch_size)), name, options
        )

    def fit_references(self, normals: Sequence[Normal], class_name: str, options: ReferenceOptions) -> References:
        """The same of what `observe` found in normal pictures."""
        own = {"sigma": self.options.sigma, "patch_size": self.tips.config.vision.patch_size}
        settings = {key: value for key, value in self.settings().items() if key != "reference"}
        return fit(
            normals,
            options,
            class_name=clean_class_name(class_name),
            settings=settings,
            image_score=self.image_score,
            **own,
        )

    @property
    def image_score(self) -> Mapping[str, float]:
        """The weights of the parts of the image score."""
        return self._method.image_score if self._method and self.mode == "learned" else scoring.IMAGE_SCORE

    @torch.inference_mode()
    def similarities(self, result: Result) -> tuple[dict[str, float], dict[str, float]]:
        """What the global score comes from: (normal, abnormal) fixed sentences, each with the cosine, in [-1, 1],
        of its embedding with the result's spatial token; the most similar first."""
        embedded = self._detectors.sentences(self.domain, result.class_name)
        normal, abnormal = (
            dict(sorted(zip(texts, (e @ result.spatial_token).tolist(), strict=True), key=lambda pair: -pair[1]))
            for texts, e in zip(self.domain.sentences(result.class_name), embedded, strict=True)
        )
        return normal, abnormal

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that `from_pretrained` and `transformers.Tipsv2Model` read, whole or not at all;
        files of other names that are there stay."""
        with staged_folder(expand(folder)) as staging:
            write_model(staging, self.tips, self.tokenizer, self.image_size)
            if self.prompts is not None:
                name = self.prompts.metadata.get("name", "")
                name = name if re.fullmatch(r"\w[\w.-]*", name, re.ASCII) else "default"  # whoever made them, chose it
                self.prompts.save(staging / "prompts" / f"{name}.safetensors")

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish what `save_pretrained` writes as the Hub repository `org/name`, made if it is not there, and return
        its address. The token is the one of `hf auth login` or HF_TOKEN unless given. Raises ModelError."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repository, private=private, token=token)

    def _result(
        self, picture: Picture, detector: int, class_name: str, note: str | None, evidence: Use = "prompts"
    ) -> Result:
        options = (
            self.mode,
            self.calibration,
            self.image_score,
            self.kinds,
            note,
            self.references(class_name),
            evidence,
        )
        return self.engine.result(picture, detector, class_name, *options)
