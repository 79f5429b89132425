"""What the Space does for a visitor, without its looks: `app.py` lays it out.

A visitor is a stranger: names a model only by its label, sends at most so many pixels and files, and no name of theirs
becomes a path.
"""

import csv
import json
import re
import time
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from tipsomaly import visualization
from tipsomaly.calibration import Calibration
from tipsomaly.catalogue import ModelError
from tipsomaly.datasets import DatasetError, mask_pixels
from tipsomaly.hub import find_prompts, released_prompts, resolve
from tipsomaly.images import ImageError, ImageSource, LoadedImage, load_image, printable
from tipsomaly.metrics import Metrics, PixelMetrics
from tipsomaly.pipeline import Pipeline
from tipsomaly.prompts import ENSEMBLES, LearnedPrompts, PromptEnsemble, clean_class_name
from tipsomaly.result import Result

MAX_PIXELS = 25_000_000
"""Of a visitor's picture: maps and overlays are drawn at its size."""
MAX_NAME = 100
"""Characters of a class name or of a phrase."""
MAX_PHRASES = 20
MAX_BATCH = 500
"""Pictures in a batch."""
MAX_FILE = 50 * 2**20
"""Bytes of an upload, and of a picture in a zip once it is unpacked."""
MAX_UNPACKED = 2**30
"""Bytes out of the zips of a batch."""
PARALLEL = 8
"""Pictures of a batch that are in memory at once."""
SHOWN = 1024
"""The longer side, in pixels, of what is shown on the page; files have the picture's own size."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """What one run of the model gives; thresholds are applied to it afterwards, without the model."""

    result: Result
    shown: Result
    """The same at the size of the page, with its own small copy of the picture."""
    normal: Mapping[str, float]
    abnormal: Mapping[str, float]
    """Cosines of the fixed sentences with the spatial token, the most similar first."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """One picture under several kinds of prompts, by their names."""

    results: Mapping[str, Result]
    """At the size of the page."""
    metrics: Mapping[str, Metrics]
    """Pixel metrics against a ground-truth mask, by the same names; empty without one."""


@dataclass(frozen=True, eq=False)
class Row:
    """A picture of a batch: its result, at the size of the page, or its error."""

    name: str
    result: Result | None = None
    error: str | None = None


class Space:
    """Models that are loaded once and shared. Every method is for one request and leaves no trace in the others."""

    def __init__(self, models: Sequence[str] = ("nano",), calibrations: Sequence[str | Path] = ()) -> None:
        """`models` are names as for `Pipeline.from_pretrained`, the default first; with each goes every prompt set that
        it has. `calibrations` are files of `tipsomaly calibrate`, used wherever they fit. Raises ModelError."""
        gpu = _zero_gpu()  # before anything is put on a GPU
        self._pipelines: dict[tuple[str, str], Pipeline] = {}
        self._calibrated: dict[tuple[str, str, str], Pipeline] = {}
        for name in models:
            for label, pipeline in _prompt_sets(name).items():
                for domain in ENSEMBLES:
                    self._pipelines[label, domain] = pipeline.with_options(domain=domain)
        for calibration in map(Calibration.load, calibrations):
            if not self._calibrate(calibration):
                raise ModelError(f"no model on offer fits the calibration of {calibration.class_name!r}")
        self._score, self._compare, self._stream = gpu(self._score), gpu(self._compare), gpu(self._stream)

    @property
    def choices(self) -> list[str]:
        """Labels of model and prompt set, as `inspect` and the others take them; the first is the default."""
        return list(dict.fromkeys(label for label, _ in self._pipelines))

    def inspect(self, image: str | Path, class_name: str, domain: str, model: str) -> Inspection:
        """Score one picture. Raises ImageError or ValueError with a line for the visitor."""
        started = time.perf_counter()
        loaded = load_image(image, MAX_PIXELS)
        result, normal, abnormal = self._score(loaded.image, _class(class_name), domain, model)
        result = replace(result, source=image, note=loaded.note)
        return Inspection(result, _shown(result, loaded.image), normal, abnormal, time.perf_counter() - started)

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
        loaded = load_image(image, MAX_PIXELS)
        results = self._compare(loaded.image, _class(class_name), domain, model, own)
        metrics = {}
        if mask is not None:
            truth = read_mask(mask, loaded.image.size)
            for name, result in results.items():
                accumulator = PixelMetrics()
                accumulator.update(result.anomaly_map, truth)
                metrics[name] = accumulator.compute()
        small = _jpeg(loaded.image)
        return Comparison({name: _shown(r, loaded.image, small) for name, r in results.items()}, metrics)

    def batch(self, files: Iterable[str | Path], class_name: str, domain: str, model: str) -> Iterator[Row]:
        """A row for each picture among the files and in the zips among them, in order, at most MAX_BATCH."""
        name = _class(class_name)
        entries = islice(pictures(files), MAX_BATCH)
        while chunk := list(islice(entries, PARALLEL)):
            loaded = [_load_or_error(source) for _, source in chunk]
            images = [entry.image for entry in loaded if not isinstance(entry, ImageError)]
            results = iter(self._stream(images, name, domain, model))
            for (label, _), entry in zip(chunk, loaded, strict=True):
                if isinstance(entry, ImageError):
                    yield Row(label, error=reason(entry))
                else:
                    yield Row(label, replace(_shown(next(results), entry.image), note=entry.note))

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

    def _pipeline(self, model: str, domain: str, class_name: str | None = None) -> Pipeline:
        if (model, domain) not in self._pipelines:
            raise ValueError(f"no such choice: the models are {', '.join(self.choices)}; {', '.join(ENSEMBLES)}")
        plain = self._pipelines[model, domain]
        return self._calibrated.get((model, domain, class_name), plain)

    def _calibrate(self, calibration: Calibration) -> bool:
        fits = False
        for (model, domain), pipeline in self._pipelines.items():
            if domain == calibration.settings.get("domain"):
                try:
                    calibrated = pipeline.with_options(calibration=calibration)
                except ModelError:
                    continue
                self._calibrated[model, domain, calibration.class_name] = calibrated
                fits = True
        return fits


def _prompt_sets(name: str) -> dict[str, Pipeline]:
    """A model with each of its prompt sets, on the same weights."""
    pipeline, folder = Pipeline.from_pretrained(name), resolve(name)
    title = Path(name).name if Path(name).is_dir() else name
    return {
        f"{title} / {label}": pipeline.with_options(learned=LearnedPrompts.load(find_prompts(folder, label)))
        for label in sorted(folder.prompt_sets() | released_prompts(folder))
    }


def _zero_gpu() -> Callable[[Callable], Callable]:
    """On a Space with ZeroGPU a function borrows the GPU while it runs; elsewhere nothing changes."""
    try:
        import spaces
    except ImportError:
        return lambda function: function
    return spaces.GPU


def _class(name: str | None) -> str:
    name = clean_class_name(name or "")
    if len(name) > MAX_NAME:
        raise ValueError(f"the class name has {len(name)} characters, at most {MAX_NAME} are taken")
    return name


def own_prompts(normal: str, abnormal: str) -> PromptEnsemble | None:
    """Phrases, one a line, in the templates of the industrial ensemble; `{}` stands for the class name, and a phrase
    without it is put before the name: "rusty" means "rusty {}". None if both are empty."""
    phrases = []
    for text in (normal, abnormal):
        lines = [" ".join(line.split()) for line in (text or "").splitlines() if line.strip()]
        if len(lines) > MAX_PHRASES or any(len(line) > MAX_NAME for line in lines):
            raise ValueError(f"at most {MAX_PHRASES} phrases of {MAX_NAME} characters are taken")
        phrases.append([line if "{}" in line else f"{line} {{}}" for line in lines])
    if not any(phrases):
        return None
    if not all(phrases):
        raise ValueError("give at least one phrase for each state, normal and abnormal")
    return PromptEnsemble(*phrases, templates=ENSEMBLES["industrial"].templates)


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """bool (height, width): where a mask picture is defective, as in a data set. Raises ValueError, in one line, if it
    is not a picture or if its size is not `size` = (width, height)."""
    try:
        mask = mask_pixels(Path(path), MAX_PIXELS)
    except DatasetError as error:
        raise ValueError(f"This mask cannot be used: {reason(error)}.") from None
    if mask.shape[::-1] != size:
        (width, height), (h, w) = size, mask.shape
        raise ValueError(f"the mask has {w} x {h} pixels, the picture {width} x {height}")
    return mask


def pictures(files: Iterable[str | Path]) -> Iterator[tuple[str, "ImageSource | ImageError"]]:
    """(name, picture or error) of files and of the files in zips. Names are only ever shown."""
    left = MAX_UNPACKED
    for file in map(Path, files):
        if zipfile.is_zipfile(file):
            left = yield from _unzipped(file, left)
        else:
            yield _label(file.name), file


def _unzipped(path: Path, left: int) -> Generator[tuple[str, "ImageSource | ImageError"], None, int]:
    """The files of a zip, as long as `left` bytes last; returns what is left of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = Path(member.filename).name
                if member.is_dir() or name.startswith(".") or "__MACOSX" in member.filename:
                    continue
                content = _unpacked(archive, member, min(MAX_FILE, left))
                left -= len(content) if isinstance(content, bytes) else min(MAX_FILE, left)
                yield _label(member.filename), content
    except Exception as error:  # zipfile raises nearly anything
        yield _label(path.name), ImageError(f"zip: damaged ({printable(str(error))[:120]})")
    return left


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes | ImageError:
    """A file in a zip. A bomb is left alone at the limit, whatever its header says."""
    try:
        with archive.open(member) as file:
            content = file.read(limit + 1)
    except Exception as error:  # encrypted, damaged, an unknown method
        return ImageError(f"zip: cannot be unpacked ({printable(str(error))[:120]})")
    return content if len(content) <= limit else ImageError(f"zip: more than {limit >> 20} MiB unpacked")


def _label(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 120 else f"…{name[-119:]}"


def _load_or_error(source: "ImageSource | ImageError") -> LoadedImage | ImageError:
    try:
        return source if isinstance(source, ImageError) else load_image(source, MAX_PIXELS)
    except ImageError as error:
        return error


def reason(error: ImageError | DatasetError) -> str:
    """What is wrong with a picture, without the place where it lies here."""
    return str(error).split(": ", 1)[-1]


def _jpeg(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((SHOWN, SHOWN))
    content = BytesIO()
    small.save(content, "JPEG", quality=92)
    return content.getvalue()


def _shown(result: Result, image: Image.Image, small: bytes | None = None) -> Result:
    small = small or _jpeg(image)
    width, height = Image.open(BytesIO(small)).size
    return replace(result, width=width, height=height, source=small)


def record(result: Result, threshold: float | None = None) -> dict:
    """A result for JSON; with a threshold of the map also its regions."""
    data = {"class_name": result.class_name, **result.record(), "strategies": result.strategies}
    if threshold is not None:
        data["threshold"] = threshold
        data["regions"] = [asdict(region) for region in result.regions(threshold)]
    return data


def write_files(result: Result, threshold: float, folder: Path) -> list[Path]:
    """A result at the picture's own size as files: overlay and mask as PNG, the map as float32 .npy and as a 16-bit PNG
    (65535 is 1), scores and regions as JSON."""
    result = replace(result)  # the large map lives no longer than this
    anomaly_map, mask = result.anomaly_map, result.mask(threshold)
    paths = {name: folder / name for name in ("overlay.png", "mask.png", "map.npy", "map_16bit.png", "regions.json")}
    result.overlay(threshold).save(paths["overlay.png"])
    Image.fromarray(mask).save(paths["mask.png"])
    np.save(paths["map.npy"], anomaly_map)
    Image.fromarray(np.round(anomaly_map * 65535).astype(np.uint16)).save(paths["map_16bit.png"])
    paths["regions.json"].write_text(json.dumps(record(result, threshold), indent=2) + "\n")
    return list(paths.values())


HEADERS = ("picture", "score", "global", "local", "verdict", "error")


def table(rows: Iterable[Row]) -> list[list[str | float]]:
    """Cells under HEADERS, the most anomalous first, errors last."""
    return [
        [row.name, *(round(v, 4) for v in (r.score, r.global_score, r.local_score)), verdict(r), ""]
        if (r := row.result)
        else [row.name, "", "", "", "", row.error]
        for row in ranked(rows)
    ]


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The most anomalous first, errors last."""
    return sorted(rows, key=lambda row: -row.result.score if row.result else 1.0)


def verdict(result: Result) -> str:
    """In a word; empty where no threshold is known."""
    return {None: "", True: "anomalous", False: "normal"}[result.is_anomalous]


def write_csv(cells: Iterable[Sequence[str | float]], path: Path) -> None:
    """A spreadsheet takes a name that starts like a formula for one: such names get a quote in front."""
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(HEADERS)
        for row in cells:
            writer.writerow([f"'{c}" if isinstance(c, str) and c[:1] in "=+-@\t\r" and c else c for c in row])


def write_overlays(rows: Iterable[Row], path: Path) -> None:
    """A zip of the overlays, most anomalous first, under safe names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, row in enumerate(ranked(rows), 1):
            if row.result:
                stem = re.sub(r"[^\w-]+", "_", Path(row.name).stem, flags=re.ASCII)[:60]
                content = BytesIO()
                replace(row.result).overlay(row.result.pixel_threshold).save(content, "PNG")  # its map is not kept
                archive.writestr(f"{i:03d}-{stem}.png", content.getvalue())


def filled(result: Result, threshold: float) -> Image.Image:
    """The picture with the regions above a threshold tinted and outlined."""
    mask = result.mask(threshold)
    pixels = np.array(result.image)
    pixels[mask] = (0.6 * pixels[mask] + 0.4 * np.array(visualization.CONTOUR)).astype(np.uint8)
    return visualization.contours(Image.fromarray(pixels), mask)
