"""All that is settled before a picture comes: weights, prompts, options, references -> what scores the tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tipsomaly.data.images import ImageSource
from tipsomaly.detection import scoring
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.combination import Use
from tipsomaly.detection.detector import Detector, Detectors, MakeDetector, PromptDetector
from tipsomaly.detection.engine import Engine
from tipsomaly.detection.leave_one_out import Normal, fit
from tipsomaly.detection.reference_detector import MAX_NORMALS, ReferenceDetector, ReferenceSource, observe
from tipsomaly.detection.references import ReferenceOptions, References
from tipsomaly.detection.result import Result
from tipsomaly.detection.settings import Settings
from tipsomaly.detection.views import Viewer
from tipsomaly.errors import ImageError, ModelError, OptionError, one_line
from tipsomaly.models.encoder import Encoder, ImageTokens, LayerTokens, Words
from tipsomaly.models.folder import ModelFolder
from tipsomaly.names import clean_class_name
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.methods import ready_method
from tipsomaly.prompts.prototypes import pair
from tipsomaly.prompts.sentences import PromptEnsemble
from tipsomaly.prompts.strategy import Mode, no_prompts

BATCH_SIZE = 16
"""Pictures, or tiles of them, that the model is given at once unless told otherwise."""

UNKNOWN = "object"
"""What a picture is taken for whose class name has a word that the model does not know."""


class Scorer:
    """A model with its prompts and options. `Pipeline` gives it pictures."""

    def __init__(
        self,
        tips: Encoder,
        tokenizer: Words,
        prompts: PromptMethod | None = None,
        *,
        calibration: Calibration | str | Path | None = None,
        reference: References | str | Path | Sequence[ImageSource] | None = None,
        evidence: Use | None = None,
        reference_options: ReferenceOptions | None = None,
        detector: MakeDetector | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `Settings`; without an image size it is the one that the tower was trained at, without
        a mode that of the prompts' method: "decoupled" for Tipsomaly's. `calibration`, which gives results a verdict,
        must have been made with the same settings, and so must `reference`, unless it is a folder of normal pictures or
        a list of them: these are remembered, as `reference_options` say, when a class is first asked for. `evidence`
        forces what scores: "prompts", "memory" or "both". `detector`, a class of your own for instance, makes what
        scores in place of the prompts, of these.

        Raises ModelError for prompts or a tokenizer that do not fit the towers, OptionError for an option that cannot
        be used.
        """
        self.tips, self.tokenizer, self.prompts = tips, tokenizer, prompts
        self._folder: ModelFolder | None = None  # where more prompt sets are, if it was loaded from somewhere
        vision, text = tips.config.vision, tips.config.text
        size = options.pop("image_size", None) or vision.image_size
        if options.get("mode") is None:
            options["mode"] = prompts.MODE if prompts else "decoupled"
        if options.get("readout") is None:
            options["readout"] = (prompts.metadata if prompts else {}).get("readout", "tokens")
        self.options = Settings(size, patch_size=vision.patch_size).but(**options)
        if self.options.readout not in tips.readouts:
            choices = ", ".join(tips.readouts)
            raise OptionError(f"this backbone has no readout {self.options.readout!r}: choose {choices}")
        look = self.options.tiling, self.options.keep_aspect, self.options.region
        viewer = Viewer(self.image_size, vision.patch_size, *look)
        self.engine = Engine(
            tips, viewer, self.options.sigma, self.options.readout, self.options.top, self.options.min_area
        )
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
        if reference is not None and detector:
            raise OptionError("normal pictures go with the prompts: give a reference or a detector, not both")
        self._make_detector = detector
        self.reference = None if reference is None else ReferenceSource(reference, evidence, reference_options)
        if self.reference and isinstance(self.reference.source, References):
            self.reference.source.check(self.settings(), vision.dim)
        if calibration:
            calibration.check(self.settings())
        self._detectors = Detectors(tips, tokenizer)

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
    def min_area(self) -> int:
        """Of a map's regions, those of fewer pixels are left out."""
        return self.options.min_area

    @property
    def strategies(self) -> tuple[str, ...]:
        """The image scores of table 2c that have a meaning for this backbone."""
        return tuple(scoring.STRATEGIES) if self.tips.has_spatial_token else scoring.ONE_TOKEN

    @property
    def domain(self) -> PromptEnsemble:
        """The fixed prompts."""
        return self.options.ensemble

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.engine.device

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

    def settings(self) -> dict[str, Any]:
        """What a score depends on besides the picture and its class, for JSON; weights and prompts as their SHA-256."""
        learned = self.prompts if self.mode != "fixed" else None
        made = self._make_detector
        return {
            **self.options.record(),
            "dtype": str(self.tips.dtype).removeprefix("torch."),
            "model": self.tips.digest(self.tokenizer.model),
            "prompts": learned and learned.digest(),
            "reference": self.reference and self.reference.digest(),
            "detector": made and f"{made.__module__}.{getattr(made, '__qualname__', repr(made))}",
        }

    def checked_class(self, class_name: str) -> tuple[str, str | None]:
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

    def scorer(self, class_name: str = "object") -> Detector:
        """What scores pictures of a class: the prompts, with a reference together with the normal pictures, or a
        detector of your own."""
        prompts, found = self.detector(class_name), self.references(class_name)
        if self._make_detector:
            return self._make_detector(prompts)
        return ReferenceDetector(prompts, found, self.device) if found else prompts

    def references(self, class_name: str = "object") -> References | None:
        """What the normal pictures say, for a class; of pictures it is made when it is first asked for."""
        return self.reference.of(self._known(class_name), self.make_references) if self.reference else None

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
        options = (options or ReferenceOptions()).of_tower(self.tips.config.vision.depth)
        name = self._known(class_name)
        if len(images) > MAX_NORMALS:
            images = [images[i * len(images) // MAX_NORMALS] for i in range(MAX_NORMALS)]
        return self.fit_references(
            list(observe(self.engine, images, self.detector(name), options, batch_size)), name, options
        )

    def fit_references(self, normals: Sequence[Normal], class_name: str, options: ReferenceOptions) -> References:
        """The same of what `observe` found in normal pictures."""
        settings = {key: value for key, value in self.settings().items() if key != "reference"}
        return fit(
            normals,
            options,
            class_name=self._known(class_name),
            settings=settings,
            image_score=self.image_score,
            top=self.options.top,
            sigma=self.options.sigma,
            patch_size=self.tips.config.vision.patch_size,
        )

    @property
    def image_score(self) -> Mapping[str, float]:
        """The weights of the parts of the image score."""
        return self._method.image_score if self._method and self.mode == "learned" else scoring.IMAGE_SCORE

    def pile(self, images: Sequence[ImageSource], class_name: str, batch_size: int) -> list[Normal]:
        """What the model says of evenly spread pictures that can be read."""
        step = max(1, -(-len(images) // MAX_NORMALS))
        found: list[Normal] = []
        for image in images[::step]:
            with suppress(ImageError):  # it is said when it is its turn
                found += observe(self.engine, [image], self.detector(class_name), ReferenceOptions(), batch_size)
        return found

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
