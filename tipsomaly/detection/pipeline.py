"""The one object that most people touch: pictures and a class name in, results out."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, overload

import torch

from tipsomaly.data.images import ImageSource
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.combination import Use
from tipsomaly.detection.engine import check_batch_size
from tipsomaly.detection.exported import Exported, is_export
from tipsomaly.detection.loading import load
from tipsomaly.detection.mutual import MutualDetector
from tipsomaly.detection.references import References
from tipsomaly.detection.result import Result, joined
from tipsomaly.detection.scorer import BATCH_SIZE, Scorer
from tipsomaly.detection.views import Picture
from tipsomaly.errors import ImageError, ModelError, OptionError
from tipsomaly.files import expand, staged_folder
from tipsomaly.models.families import FAMILIES
from tipsomaly.models.publish import upload
from tipsomaly.prompts.find import default_prompts, read_prompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.sentences import PromptEnsemble
from tipsomaly.prompts.strategy import MODES


class Pipeline(Scorer):
    """Zero-shot anomaly detection on single pictures. Safe to call from several threads at once.

    >>> from tipsomaly import Pipeline
    >>> pipe = Pipeline.from_pretrained()
    >>> result = pipe("examples/pictures/concrete-defect.jpg", class_name="concrete")
    >>> result.anomaly_map.shape
    (640, 640)
    >>> result.score > pipe("examples/pictures/concrete-good.jpg", class_name="concrete").score
    True
    """

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
        """Load a model by name: "nano" (bundled: no network, CPU), a model folder, `org/name` or `hf://org/name` on the
        Hub or its address (`https://huggingface.co/org/name`), or a released backbone such as "tips-l14-hr" (see
        `tipsomaly models`), which is fetched and converted once.

        revision: branch, tag or commit of a Hub repository.
        prompts: the name of a prompt set of the model ("dapo", "cops"), a .safetensors file, or `org/name[:set]` on the
            Hub, of any method. Without it the set named after the domain is taken, else the first one.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU if there is one.
        dtype: of the vision tower, "float32", "bfloat16" or "float16"; "auto" is bfloat16 on an NVIDIA GPU (float16 on
            one that is too old for it), float32 elsewhere; "fastest" is the same, but bfloat16 also on a CPU that has
            it and is found to be faster with it.
        calibration: thresholds from `tipsomaly calibrate`, for `Result.is_anomalous`.
        options: `reference`, `evidence`, `reference_options` and `detector`, see `Pipeline`; `image_size` (default: the
            model folder's), `domain`, `mode`, `kinds`, `readout`, `sigma`, `top`, `tile`, `overlap`, `keep_aspect`,
            `roi`, `ignore` and `min_area`, see `Settings`.

        The folder of `tipsomaly export` gives an `Exported`, which has what a pipeline has for pictures; its options
        are those that it was exported with.

        Raises ModelError, in one line, for a model, prompt set or option that cannot be used.
        """
        if revision is None and is_export(model):
            exported = Exported(model, calibration)
            exported.check(device, dtype, prompts=prompts, **options)
            return cast("Pipeline", exported)
        loaded = load(model, revision, prompts, device, dtype, options.get("mode"), options.get("domain", "industrial"))
        options["image_size"] = options.get("image_size") or loaded.image_size
        pipe = cls(loaded.tips, loaded.tokenizer, loaded.prompts, calibration=calibration, **options)
        pipe._folder = loaded.folder
        return pipe

    def with_options(self, **options: Any) -> "Pipeline":
        """A pipeline with other options (those of the constructor) on the same weights and prototype cache; this one
        stays as it is. It is not calibrated, unless a calibration is among the options, and has no references that were
        made, unless they are; normal pictures stay. Prompts may be a name, as `from_pretrained` takes it.

        >>> Pipeline.from_pretrained().with_options(mode="fixed", image_size=224).image_size
        (224, 224)
        """
        prompts, calibration = options.pop("prompts", self.prompts), options.pop("calibration", None)
        if isinstance(prompts, str | Path):
            if self._folder is None:
                raise OptionError("this pipeline was not loaded from a folder: give the prompts themselves, not a name")
            prompts = read_prompts(self._folder, prompts)
        if prompts is not self.prompts:
            own = self.prompts is not None and self.mode == self.prompts.MODE  # then it is the other's own as well
            options = {
                "mode": prompts.MODE if prompts and own else self.mode,
                "kinds": None,
                "readout": (prompts.metadata if prompts else {}).get("readout", "tokens"),
                **options,
            }
        known, names = self.reference, ("reference", "evidence", "reference_options")
        if known and "reference" not in options and not isinstance(known.source, References):
            options = {**dict(zip(names, (known.source, known.evidence, known.options), strict=True)), **options}
        ours = {name: options.pop(name, None) for name in names}
        ours["detector"] = options.pop("detector", self._make_detector)
        settings = self.options.but(**options)
        other = Pipeline(self.tips, self.tokenizer, prompts, calibration=calibration, **ours, **settings.options())
        if prompts is self.prompts and settings.kinds == self.options.kinds:
            other._method = self._method
        other._detectors = self._detectors
        other._folder = self._folder
        return other

    def methods(self) -> dict[str, "Pipeline"]:
        """This pipeline, and one for each other method that the model's folder has prompts of, by the method's name.
        They share weights, and what patches are read from. Raises ModelError."""
        found, sets = {self.method_name: self}, self._detectors.sets
        if self._folder is None:
            return found
        for name, path in sorted(self._folder.prompt_sets().items()):
            if path not in sets:
                sets[path] = read_prompts(self._folder, name)
            prompts = sets[path]
            if prompts.NAME not in found and prompts.metadata.get("readout", "tokens") == self.options.readout:
                found[prompts.NAME] = self.with_options(prompts=prompts, mode=prompts.MODE)
        return found

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

        >>> pictures = ["examples/pictures/tile-good.jpg", "nowhere.jpg"]
        >>> for result in Pipeline.from_pretrained().stream(pictures, "tile", errors="yield"):
        ...     print(result.width if isinstance(result, Result) else result)
        640
        nowhere.jpg: no such file
        """
        check_batch_size(batch_size)
        if together and (self.reference or self._make_detector):
            other = "a reference" if self.reference else "a detector"
            raise OptionError(f"pictures are compared with each other or with {other}, not with both")
        if errors not in ("raise", "yield"):
            raise OptionError(f"errors must be 'raise' or 'yield', not {errors!r}")
        return self._stream(images, *self.checked_class(class_name), batch_size, errors, maps, together)

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
        scorer = self.scorer(class_name)
        if together:
            images = list(images)
            scorer = mutual = MutualDetector(self.detector(class_name), self.pile(images, class_name, batch_size))
            note = joined(note, mutual.note)
        for view in self.engine.scored(images, [scorer], batch_size, maps):
            if isinstance(view, ImageError):
                if errors == "raise":
                    raise view
                yield view
            elif view.is_last:
                yield self._result(view.picture, 0, class_name, note, "both" if together else "prompts")

    def compare(
        self, image: ImageSource, class_name: str = "object", own: PromptEnsemble | None = None
    ) -> dict[str, Result]:
        """The decoupled-prompt ablation (table 2a) on one picture, encoded once: the result under each of the modes
        "fixed", "learned" and "decoupled", under "own", fixed prompts of your own, when they are given, under
        each other method that the model's folder has prompts of, "dapo" and "cops", and with a reference under
        "memory", of the normal pictures alone, and "both".

        >>> results = Pipeline.from_pretrained().compare("examples/pictures/zipper-1.jpg", "zipper")
        >>> results["decoupled"].global_score == results["fixed"].global_score != results["learned"].global_score
        True
        """
        name, note = self.checked_class(class_name)
        columns = _compared(self, name, own)
        detectors = [pipe.scorer(name) for pipe in columns.values()]
        for view in self.engine.scored([image], detectors, BATCH_SIZE):
            if isinstance(view, ImageError):
                raise view
            picture = view.picture
        return {column: pipe._result(picture, i, name, note) for i, (column, pipe) in enumerate(columns.items())}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that `from_pretrained` and transformers read, whole or not at all;
        files of other names that are there stay."""
        with staged_folder(expand(folder)) as staging:
            FAMILIES[self.tips.model_type].write(staging, self.tips, self.tokenizer, self.image_size)
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

    def compile(self, batch_size: int = BATCH_SIZE, backend: str = "inductor") -> float:
        """Compile the blocks of the vision tower with torch.compile, for batches of this many pictures at the input
        size, and return the seconds that it took. It pays on a GPU that is to see thousands of pictures; pipelines on
        the same weights share it. A batch of another shape is compiled, once, when it comes.

        Raises ModelError, and leaves the tower as it was, where it cannot be compiled.
        """
        return self.engine.compile(batch_size, backend)

    def _result(
        self, picture: Picture, detector: int, class_name: str, note: str | None, evidence: Use = "prompts"
    ) -> Result:
        options = (self.mode, self.calibration, self.image_score, self.kinds, note)
        return self.engine.result(picture, detector, class_name, *options, self.references(class_name), evidence)


def _compared(pipe: Pipeline, class_name: str, own: PromptEnsemble | None) -> dict[str, Pipeline]:
    """The pipelines of a comparison, by the names of its results."""
    prompts = pipe.prompts
    if prompts is None and pipe._folder:
        prompts = default_prompts(pipe._folder, pipe.options.domain)
    if prompts is None:
        raise ModelError("a comparison needs learned prompts and this model has none")
    alone, known = pipe.with_options(reference=None), pipe.calibration
    columns: dict[str, Pipeline] = {
        mode: alone.with_options(prompts=prompts, mode=mode, calibration=known if mode == pipe.mode else None)
        for mode in MODES
    }
    if own is not None:
        columns["own"] = alone.with_options(domain=own, mode="fixed")
    if not pipe.options.tile:
        columns |= {method: other for method, other in alone.methods().items() if method != prompts.NAME}
    if found := pipe.references(class_name):
        remembered: tuple[Use, ...] = ("memory", "both")
        columns |= {use: pipe.with_options(reference=found.using(use)) for use in remembered}
    return columns
