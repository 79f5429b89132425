"""What the pipeline says of one picture."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from tipsomaly.data.images import ImageSource, load_image
from tipsomaly.detection import scoring, visualization
from tipsomaly.detection.tiling import Tiles
from tipsomaly.errors import OptionError
from tipsomaly.files import whole_file


def joined(*notes: str | None) -> str | None:
    """The notes that there are, as one."""
    return "; ".join(note for note in notes if note) or None


@dataclass(frozen=True)
class Region:
    """A connected region of a map above a threshold (8-connected)."""

    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels; right and bottom are outside."""
    area: int
    """pixels"""
    peak: float
    """largest value of the anomaly map inside"""


@dataclass(frozen=True, eq=False)
class Result:
    """Scores and maps of one picture. Maps are made when asked for, from the small patch map."""

    object_score: float
    """p_a(g_o): equation 1 for the object token; strategies S1, S3 and S4 of table 2c."""
    global_score: float
    """p_a(g_s): equation 1 for the spatial token."""
    patch_map: np.ndarray = field(repr=False)
    """float32 (h, w) in [0, 1]: probability of each patch, before upsampling."""
    width: int
    height: int
    """Size in pixels of the upright input picture."""
    input_size: tuple[int, int]
    """(height, width) in pixels that the model saw."""
    class_name: str
    mode: str
    sigma: float = scoring.SIGMA
    spatial_token: np.ndarray | None = field(default=None, repr=False)
    """g_s as a float32 unit vector (D,), for `Pipeline.similarities`."""
    note: str | None = None
    """What was left out of the picture, or which words of the class name the model does not know, if any."""
    image_threshold: float | None = None
    """Of a calibrated pipeline; a score of at least this is anomalous."""
    pixel_threshold: float | None = None
    """Of a calibrated pipeline, for `mask`, `regions` and `overlay`."""
    tiles: Tiles | None = None
    """The patch maps of a picture that was cut into tiles: they take the place of `patch_map`, which is then of the
    whole picture and so coarser, in `local_score` and `anomaly_map`."""
    source: ImageSource | None = field(default=None, repr=False)

    @property
    def local_score(self) -> float:
        """The largest patch probability, of a tiled picture over all its tiles."""
        return float((self.tiles.patch_maps if self.tiles else self.patch_map).max())

    @property
    def score(self) -> float:
        """The image score, in [0, 2]: p_a(g_s) + the largest patch probability (strategy S5, the paper's).

        With tiles it is ours, not the paper's: p_a(g_s) of the whole picture + the largest patch probability of all
        tiles. More tiles are more chances of a large one, so a threshold serves pictures of one size and tiling."""
        return self.global_score + self.local_score

    @property
    def is_anomalous(self) -> bool | None:
        """The verdict of a calibrated pipeline; None without calibration, as there is no threshold that fits all."""
        return None if self.image_threshold is None else self.score >= self.image_threshold

    @property
    def strategies(self) -> dict[str, float]:
        """The image score under each strategy S1..S5 of table 2c."""
        return scoring.image_scores(self.object_score, self.global_score, self.local_score)

    @cached_property
    def anomaly_map(self) -> np.ndarray:
        """float32 (height, width) in [0, 1]: upsampled and smoothed as in the paper, at the picture's own size; of a
        tiled picture the maps of its tiles, blended."""
        if self.tiles:
            return self.tiles.anomaly_map((self.height, self.width), self.sigma)
        return scoring.anomaly_map(self.patch_map, self.input_size, (self.height, self.width), self.sigma)

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """bool (height, width): where the anomaly map is at least `threshold`, which is the calibrated one unless
        given. Raises OptionError where there is neither."""
        threshold = self.pixel_threshold if threshold is None else threshold
        if threshold is None:
            raise OptionError("without a calibration there is no threshold: give one, as in mask(0.5)")
        return self.anomaly_map >= threshold

    def regions(self, threshold: float | None = None) -> list[Region]:
        """The connected regions of `mask(threshold)`, highest peak first."""
        from scipy import ndimage

        labels, count = ndimage.label(self.mask(threshold), structure=np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        peaks = ndimage.maximum(self.anomaly_map, labels, range(1, count + 1)) if count else []
        found = [
            Region((x.start, y.start, x.stop, y.stop), int(area), float(peak))
            for (y, x), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True)
        ]
        return sorted(found, key=lambda region: -region.peak)

    def record(self) -> dict[str, float | int | bool | str]:
        """What a line of `results.jsonl` says of a picture, less its name and its files."""
        record = {
            "score": self.score,
            "global_score": self.global_score,
            "local_score": self.local_score,
            "width": self.width,
            "height": self.height,
        }
        if self.is_anomalous is not None:
            record["is_anomalous"] = self.is_anomalous
        if self.note:
            record["note"] = self.note
        return record

    @property
    def image(self) -> Image.Image:
        """The upright RGB picture, decoded again from its source: results stay small."""
        if self.source is None:
            raise ValueError("this result does not know its picture")
        return load_image(self.source).image

    def overlay(self, threshold: float | None = None) -> Image.Image:
        """The map over the picture in fixed colours (0..1); with a threshold also the contours of its regions."""
        picture = visualization.overlay(self.image, self.anomaly_map)
        return picture if threshold is None else visualization.contours(picture, self.mask(threshold))

    def save(self, folder: str | Path, stem: str | None = None) -> dict[str, Path]:
        """Write `<stem>_map.npy` (float32) and `<stem>_overlay.png` (with contours, if calibrated) into `folder`, made
        if need be, each whole or not at all; returns the paths as {"map": ..., "overlay": ...}. The stem is the
        picture's file name unless given.
        """
        folder = Path(folder)
        stem = stem or (Path(self.source).stem if isinstance(self.source, str | Path) else "image")
        paths = {"map": folder / f"{stem}_map.npy", "overlay": folder / f"{stem}_overlay.png"}
        overlay = self.overlay(self.pixel_threshold)
        with whole_file(paths["map"]) as file:
            np.save(file, self.anomaly_map)
        with whole_file(paths["overlay"]) as file:
            overlay.save(file, "PNG")
        return paths
