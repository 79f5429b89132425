"""What a visitor gets: JSON, tables, files."""

import csv
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tipsomaly.detection import visualization
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.formats import Coco
from tipsomaly.detection.result import Result
from tipsomaly.detection.scoring import STRATEGIES
from tipsomaly.studies.metrics import Metrics

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
    calibration: Calibration | None = None
    """Of the good pictures that the verdict comes from, if it does."""
    unused: str | None = None
    """Why the good pictures that were chosen do not serve this picture, in a line."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """One picture under several kinds of prompts, by their names."""

    results: Mapping[str, Result]
    """At the size of the page."""
    metrics: Mapping[str, Metrics]
    """Pixel metrics against a ground-truth mask, by the same names; empty without one."""
    truth: np.ndarray | None = None
    """bool (height, width): the mask at the size of the page, if there is one."""
    strategies: Sequence[str] = tuple(STRATEGIES)
    """The image scores of table 2c that have a meaning for the model."""


@dataclass(frozen=True, eq=False)
class Row:
    """A picture of a batch: its result, at the size of the page, or its error."""

    name: str
    result: Result | None = None
    error: str | None = None
    overlay: Path | None = None
    """The map over the picture, as JPEG."""


def jpeg(image: Image.Image, side: int = SHOWN) -> bytes:
    """As a file of at most `side` pixels a side, hardly compressed, as it is shown large."""
    return visualization.jpeg(image, side, quality=92)


def shown(result: Result, image: Image.Image, small: bytes | None = None) -> Result:
    small = small or jpeg(image)
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
    (65535 is 1), scores and regions as JSON, and the regions as COCO has them, in `coco.json`."""
    result = replace(result, pixel_threshold=threshold)  # the large map lives no longer than this
    anomaly_map, mask = result.anomaly_map, result.mask(threshold)
    paths = {name: folder / name for name in ("overlay.png", "mask.png", "map.npy", "map_16bit.png", "regions.json")}
    result.overlay(threshold).save(paths["overlay.png"])
    Image.fromarray(mask).save(paths["mask.png"])
    np.save(paths["map.npy"], anomaly_map)
    Image.fromarray(np.round(anomaly_map * 65535).astype(np.uint16)).save(paths["map_16bit.png"])
    paths["regions.json"].write_text(json.dumps(record(result, threshold), indent=2) + "\n", encoding="utf-8")
    with Coco(folder, root="") as coco:  # of no folder of the server
        coco.add(Path(result.source).name if isinstance(result.source, str | Path) else "picture", result, "")
    return [*paths.values(), folder / "coco.json"]


HEADERS = ("picture", "score", "global", "local", "verdict", "error")


def table(rows: Iterable[Row]) -> list[list[str | float]]:
    """Cells under HEADERS: first what could not be used, which its sender should see, then the most anomalous first."""
    return [
        [row.name, *(round(v, 4) for v in (r.score, r.global_score, r.local_score)), verdict(r), ""]
        if (r := row.result)
        else [row.name, "", "", "", "", row.error or ""]
        for row in sorted(ranked(rows), key=lambda row: row.error is None)
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
            if row.overlay:
                stem = re.sub(r"[^\w-]+", "_", Path(row.name).stem, flags=re.ASCII)[:60]
                archive.write(row.overlay, f"{i:03d}-{stem}.jpg")


def filled(result: Result, threshold: float) -> Image.Image:
    """The picture with the regions above a threshold tinted and outlined."""
    mask = result.mask(threshold)
    pixels = np.array(result.image)
    pixels[mask] = (0.6 * pixels[mask] + 0.4 * np.array(visualization.CONTOUR)).astype(np.uint8)
    return visualization.contours(Image.fromarray(pixels), mask)
