"""What the Space does for a visitor, without its looks: `app.py` lays it out.

A visitor is a stranger: names a model only by its label, sends at most so many pixels and files, and no name of theirs
becomes a path.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from tipsomaly.data.images import ImageSource
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.references import References
from tipsomaly.detection.result import Result, joined
from tipsomaly.errors import ImageError, ModelError
from tipsomaly.models.hub import resolve
from tipsomaly.prompts.find import read_prompts, released_prompts
from tipsomaly.prompts.methods import METHODS
from tipsomaly.prompts.sentences import ENSEMBLES, PromptEnsemble
from tipsomaly.service.exports import Comparison, Inspection, Row, jpeg, shown
from tipsomaly.service.turns import Turns
from tipsomaly.service.uploads import (
    MAX_BATCH,
    load_or_error,
    own_prompts,
    photograph,
    pictures,
    read_mask,
    reason,
    visitors_class,
)
from tipsomaly.studies.calibrate import thresholds
from tipsomaly.studies.metrics import PixelMetrics

PARALLEL = 8
"""Pictures of a batch that are in memory at once."""
MIN_GOOD, MAX_GOOD = 5, 20
"""Good pictures that a visitor calibrates with."""


class Space:
    """Models that are loaded once and shared. Every method is for one request and leaves no trace in the others."""

    def __init__(self, models: Sequence[str] = ("nano",), calibrations: Sequence[str | Path] = ()) -> None:
        """`models` are names as for `Pipeline.from_pretrained`, the default first; with each goes every prompt set that
        it has. `calibrations` are files of `tipsomaly calibrate`, or of `tipsomaly reference` (.safetensors), used
        wherever they fit. Raises ModelError."""
        self._turns = Turns()
        gpu = _zero_gpu()  # before anything is put on a GPU
        self._pipelines: dict[tuple[str, str], Pipeline] = {}
        self._calibrated: dict[tuple[str, str, str | None], Pipeline] = {}
        for name in models:
            for label, pipeline in _prompt_sets(name).items():
                for domain in ENSEMBLES:
                    self._pipelines[label, domain] = pipeline.with_options(domain=domain)
        for path in map(Path, calibrations):
            calibration = References.load(path) if path.suffix == ".safetensors" else Calibration.load(path)
            if not self._calibrate(calibration):
                raise ModelError(f"no model on offer fits the calibration of {calibration.class_name!r}")
        for name in ("_score", "_compare", "_stream"):
            setattr(self, name, gpu(getattr(self, name)))

    @property
    def choices(self) -> list[str]:
        """Labels of model and prompt set, as `inspect` and the others take them; the first is the default."""
        return list(dict.fromkeys(label for label, _ in self._pipelines))

    def inspect(
        self,
        image: str | Path | bytes,
        class_name: str,
        domain: str,
        model: str,
        calibration: Calibration | None = None,
    ) -> Inspection:
        """Score one picture, a file or its content; `calibration`, see `calibrate`, gives a verdict if it was made for
        the same class, fixed prompts and model. Raises ImageError or ValueError with a line for the visitor."""
        started = time.perf_counter()
        loaded, name = photograph(image), visitors_class(class_name)
        result, normal, abnormal = self._score(loaded.image, name, domain, model)
        source = jpeg(loaded.image, max(loaded.image.size)) if loaded.full_size else image  # its maps' size
        result = replace(result, source=source, note=joined(loaded.note, result.note))
        unused = self._misfit(calibration, name, domain, model)
        judge = self._pipeline(model, domain, name).calibration if unused or not calibration else calibration
        result = judged(result, judge)
        seconds = time.perf_counter() - started
        return Inspection(result, shown(result, loaded.image), normal, abnormal, seconds, judge, unused)

    def is_calibrated(self, class_name: str, domain: str, model: str) -> bool:
        """Whether a class has verdicts by a file that the Space was started with."""
        return (model, domain, class_name) in self._calibrated

    def calibrate(
        self, files: Iterable[str | Path], class_name: str, domain: str, model: str, target_fpr: float
    ) -> Calibration:
        """Thresholds from MIN_GOOD to MAX_GOOD good pictures, files or in a zip, of which the share `target_fpr` may be
        called defective, or reach the threshold of the map anywhere; from maps at the size of the page. Raises
        ValueError with a line for the visitor."""
        rows = list(islice(self.batch(files, class_name, domain, model), MAX_GOOD + 1))
        if not MIN_GOOD <= len(rows) <= MAX_GOOD:
            many = "more" if len(rows) > MAX_GOOD else len(rows)
            raise ValueError(f"choose {MIN_GOOD} to {MAX_GOOD} good pictures; these are {many}")
        if bad := next((row for row in rows if row.error), None):
            raise ValueError(f"{bad.name} cannot be used: {bad.error}")
        name = visitors_class(class_name)
        settings = self._pipeline(model, domain, name).settings()
        return thresholds((row.result for row in rows if row.result), name, target_fpr, settings, "pictures")

    def compare(
        self,
        image: str | Path,
        class_name: str,
        domain: str,
        model: str,
        normal: str = "",
        abnormal: str = "",
        mask: str | Path | None = None,
    ) -> Comparison:
        """The decoupled-prompt ablation (table 2a) on one picture; "own" joins it if there are phrases, one a line, and
        a mask, see `read_mask`, gives pixel metrics."""
        own = own_prompts(normal, abnormal)
        loaded = photograph(image)
        results = self._compare(loaded.image, visitors_class(class_name), domain, model, own)
        small = jpeg(loaded.image)
        found = {name: shown(r, loaded.image, small) for name, r in results.items()}
        metrics, outline = {}, None
        if mask is not None:
            truth = read_mask(mask, loaded.full_size or loaded.image.size)
            if loaded.full_size:
                truth = np.asarray(Image.fromarray(truth).resize(loaded.image.size, Image.Resampling.NEAREST))
            for name, result in results.items():
                accumulator = PixelMetrics()
                accumulator.update(result.anomaly_map, truth)
                metrics[name] = accumulator.compute()
            size = found["fixed"].width, found["fixed"].height
            outline = np.asarray(Image.fromarray(truth).convert("L").resize(size, Image.Resampling.BOX)) > 0
        return Comparison(found, metrics, outline, self._pipeline(model, domain).strategies)

    def batch(
        self,
        files: Iterable[str | Path],
        class_name: str,
        domain: str,
        model: str,
        calibration: Calibration | None = None,
    ) -> Iterator[Row]:
        """A row for each picture among the files and in the zips among them, in order, at most MAX_BATCH; `calibration`
        as for `inspect`. Several batches take turns, PARALLEL pictures each."""
        name = visitors_class(class_name)
        judge = None if self._misfit(calibration, name, domain, model) else calibration
        entries = islice(pictures(files), MAX_BATCH)
        while True:
            with self._turns.turn():
                if not (chunk := list(islice(entries, PARALLEL))):
                    return
                rows = self._rows(chunk, name, domain, model, judge)
            yield from rows

    def _rows(
        self,
        chunk: list[tuple[str, ImageSource | ImageError]],
        class_name: str,
        domain: str,
        model: str,
        calibration: Calibration | None,
    ) -> list[Row]:
        loaded = [load_or_error(source) for _, source in chunk]
        images = [entry.image for entry in loaded if not isinstance(entry, ImageError)]
        results = iter(self._stream(images, class_name, domain, model))
        rows = []
        for (label, _), entry in zip(chunk, loaded, strict=True):
            if isinstance(entry, ImageError):
                rows.append(Row(label, error=reason(entry)))
            else:
                result = shown(judged(next(results), calibration), entry.image)
                rows.append(Row(label, replace(result, note=joined(entry.note, result.note))))
        return rows

    def _score(
        self, image: Image.Image, class_name: str, domain: str, model: str
    ) -> tuple[Result, dict[str, float], dict[str, float]]:
        pipeline = self._pipeline(model, domain, class_name)
        result = pipeline(image, class_name)
        return replace(result, source=None), *pipeline.similarities(result)

    def _compare(
        self, image: Image.Image, class_name: str, domain: str, model: str, own: PromptEnsemble | None
    ) -> dict[str, Result]:
        results = self._pipeline(model, domain).compare(image, class_name, own)
        return {name: replace(result, source=None) for name, result in results.items()}

    def _stream(self, images: list[Image.Image], class_name: str, domain: str, model: str) -> list[Result]:
        pipeline = self._pipeline(model, domain, class_name)
        return [replace(result, source=None) for result in pipeline.stream(images, class_name, batch_size=PARALLEL)]

    def _misfit(self, calibration: Calibration | None, class_name: str, domain: str, model: str) -> str | None:
        if calibration is None:
            return None
        if calibration.class_name != class_name:
            return f"they are of the class {calibration.class_name!r}"
        try:
            calibration.check(self._pipeline(model, domain, class_name).settings())
        except ModelError as error:
            return str(error)
        return None

    def _pipeline(self, model: str, domain: str, class_name: str | None = None) -> Pipeline:
        if (model, domain) not in self._pipelines:
            raise ValueError(f"no such choice: the models are {', '.join(self.choices)}; {', '.join(ENSEMBLES)}")
        plain = self._pipelines[model, domain]
        return self._calibrated.get((model, domain, class_name), plain)

    def _calibrate(self, calibration: Calibration | References) -> bool:
        option = "reference" if isinstance(calibration, References) else "calibration"
        fits = False
        for (model, domain), pipeline in self._pipelines.items():
            if domain == calibration.settings.get("domain"):
                try:
                    calibrated = pipeline.with_options(**{option: calibration})
                except ModelError:
                    continue
                self._calibrated[model, domain, calibration.class_name] = calibrated
                fits = True
        return fits


def judged(result: Result, calibration: Calibration | None) -> Result:
    """The result with the thresholds of a calibration that fits it, if there is one."""
    if calibration is None:
        return result
    return replace(result, image_threshold=calibration.image_threshold, pixel_threshold=calibration.pixel_threshold)


def _prompt_sets(name: str) -> dict[str, Pipeline]:
    """A model with each of its prompt sets, on the same weights; those named after another method last."""
    pipeline, folder = Pipeline.from_pretrained(name), resolve(name)
    title = Path(name).name if Path(name).is_dir() else name
    return {
        f"{title} / {label}": pipeline.with_options(prompts=read_prompts(folder, label))
        for label in sorted(folder.prompt_sets() | released_prompts(folder), key=lambda name: (name in METHODS, name))
    }


def _zero_gpu() -> Callable[[Callable], Callable]:
    """On a Space with ZeroGPU a function borrows the GPU while it runs; elsewhere nothing changes."""
    try:
        import spaces
    except ImportError:
        return lambda function: function
    return spaces.GPU
