"""What the pipeline says of one picture."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tipsomaly.data.images import ImageSource, load_image, source_name
from tipsomaly.data.interest import Place
from tipsomaly.detection import scoring, visualization
from tipsomaly.detection.combination import Use
from tipsomaly.detection.references import References
from tipsomaly.detection.tiling import Tiles
from tipsomaly.errors import OptionError
from tipsomaly.files import whole_file

if TYPE_CHECKING:
    from supervision import Detections


def joined(*notes: str | None) -> str | None:
    """The notes that there are, as one."""
    return "; ".join(note for note in notes if note) or None


@dataclass(frozen=True)
class Region:
    """A connected region of a map above a threshold (8-connected).

    >>> from tipsomaly import Region
    >>> left, top, right, bottom = Region(box=(10, 20, 14, 23), area=9, peak=0.75).box
    >>> right - left, bottom - top
    (4, 3)
    """

    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels; right and bottom are outside."""
    area: int
    """pixels"""
    peak: float
    """largest value of the anomaly map inside"""
    kind: str | None = None
    """The kind of defect that its patches most probably have, by prompts that know kinds."""
    kind_probability: float | None = None
    """Mean of that kind's probability over the patches, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Result:
    """Scores and maps of one picture. Maps are made when asked for, from the small patch map.

    >>> import numpy as np
    >>> from tipsomaly import Result
    >>> patches = np.float32([[0, 0, 0], [0, 0, 0.75]])
    >>> result = Result(0.5, 0.25, patches, 6, 4, (28, 42), "tile", "decoupled", sigma=0)
    >>> result.score  # p_a(g_s) + the largest patch probability
    1.0
    >>> result.anomaly_map.shape
    (4, 6)
    >>> result.regions(0.5)
    [Region(box=(4, 2, 6, 4), area=3, peak=0.75, kind=None, kind_probability=None)]
    """

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
    image_score: Mapping[str, float] = field(default_factory=lambda: scoring.IMAGE_SCORE, repr=False)
    """The weights of the score: of p_a(g_o), "object", of p_a(g_s), "spatial", and of the largest patch probability,
    "local"."""
    top: float | None = None
    """Share of the patches whose mean is the local score; None: the largest alone."""
    references: References | None = field(default=None, repr=False)
    """The normal pictures that it was compared with, if there were any; `references.reason` says how, and why."""
    evidence: Use = "prompts"
    """What scored: the prompts, other pictures, or both."""
    kind_names: tuple[str, ...] = field(default=(), repr=False)
    kind_map: np.ndarray | None = field(default=None, repr=False)
    """float16 (h, w, K), of a tiled picture (rows, columns, h, w, K): the probability of each kind at each patch."""

    place: Place | None = field(default=None, repr=False)
    """Of the region of interest, if there was one: patch maps are of its box, and only what touches it is not 0."""
    min_area: int = 0
    """Regions of fewer pixels are left out of `mask` and what is made of it."""

    @property
    def local_score(self) -> float:
        """The largest patch probability, or the mean of the largest `top`; of a tiled picture over all its tiles."""
        return scoring.local_evidence(self.tiles.patch_maps if self.tiles else self.patch_map, self.top)

    @property
    def score(self) -> float:
        """The image score: p_a(g_s) + the largest patch probability, in [0, 2] (strategy S5, the paper's), or what the
        method of the prompts takes for it, in [0, 1].

        With tiles it is ours, not the paper's: p_a(g_s) of the whole picture + the largest patch probability of all
        tiles. More tiles are more chances of a large one, so a threshold serves pictures of one size and tiling."""
        return scoring.image_score(self.image_score, self.object_score, self.global_score, self.local_score)

    @property
    def kinds(self) -> dict[str, float] | None:
        """The probability of each kind of defect at the most abnormal patch, the most probable first; None for prompts
        that know no kinds. What is left of 1 is the probability that it is normal."""
        if self.kind_map is None:
            return None
        peak = int((self.tiles.patch_maps if self.tiles else self.patch_map).argmax())
        values = self.kind_map.reshape(-1, len(self.kind_names))[peak].astype(float).tolist()
        return dict(sorted(zip(self.kind_names, values, strict=True), key=lambda pair: -pair[1]))

    @property
    def is_anomalous(self) -> bool | None:
        """The verdict of a calibrated pipeline; None without calibration, as there is no threshold that fits all."""
        return None if self.image_threshold is None else self.score >= self.image_threshold

    @property
    def p_value(self) -> float | None:
        """The probability that a normal picture has at least this score, in [1 / (n + 1), 1] after n normal pictures;
        None without them."""
        return self.references.p_value(self.score) if self.references else None

    @property
    def strategies(self) -> dict[str, float]:
        """The image score under each strategy S1..S5 of table 2c."""
        return scoring.image_scores(self.object_score, self.global_score, self.local_score)

    @cached_property
    def anomaly_map(self) -> np.ndarray:
        """float32 (height, width) in [0, 1]: upsampled and smoothed as in the paper, at the picture's own size; of a
        tiled picture the maps of its tiles, blended. 0 outside the region of interest."""
        if self.tiles:
            seen = self.tiles.anomaly_map(self._seen, self.sigma)
        else:
            seen = scoring.anomaly_map(self.patch_map, self.input_size, self._seen, self.sigma)
        return self.place.put_back(seen) if self.place else seen

    @property
    def _seen(self) -> tuple[int, int]:
        """(height, width) in pixels of what was scored: the picture, or the box of the region of interest."""
        if self.place is None:
            return self.height, self.width
        left, top, right, bottom = self.place.box
        return bottom - top, right - left

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """bool (height, width): where the anomaly map is at least `threshold`, which is the calibrated one unless
        given; less what is smaller than `min_area`. Raises OptionError where there is no threshold."""
        threshold = self.pixel_threshold if threshold is None else threshold
        if threshold is None:
            raise OptionError("without a calibration there is no threshold: give one, as in mask(0.5)")
        mask = self.anomaly_map >= threshold
        if self.min_area > 1:
            from scipy import ndimage

            labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
            mask &= np.bincount(labels.ravel())[labels] >= self.min_area
        return mask

    def regions(self, threshold: float | None = None) -> list[Region]:
        """The connected regions of `mask(threshold)`, highest peak first."""
        from scipy import ndimage

        labels, count = ndimage.label(self.mask(threshold), structure=np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        peaks = ndimage.maximum(self.anomaly_map, labels, range(1, count + 1)) if count else []
        kinds = self._kinds_of_regions(labels, count)
        found = [
            Region((x.start, y.start, x.stop, y.stop), int(area), float(peak), *kind)
            for (y, x), area, peak, kind in zip(ndimage.find_objects(labels), areas, peaks, kinds, strict=True)
        ]
        return sorted(found, key=lambda region: -region.peak)

    def cutouts(self, threshold: float | None = None) -> Iterator[tuple[Region, np.ndarray]]:
        """The `regions(threshold)`, each with what it is of its box: bool (bottom - top, right - left)."""
        from scipy import ndimage

        mask = self.mask(threshold)
        for region in self.regions(threshold):
            left, top, right, bottom = region.box
            labels, _ = ndimage.label(mask[top:bottom, left:right], structure=np.ones((3, 3)))
            # Others reach into its box, but only one region can touch all four sides of it.
            extents = [(y.stop - y.start, x.stop - x.start) for y, x in ndimage.find_objects(labels)]
            yield region, labels == 1 + extents.index(labels.shape)

    def to_supervision(self, threshold: float | None = None) -> "Detections":
        """The `regions(threshold)` as `supervision.Detections`: boxes and masks in pixels of the picture, peaks as
        confidence, and `data["class_name"]`: the kind of each, "anomaly" from prompts that know none. Needs the extra
        "supervision"; OptionError where it is not installed."""
        try:
            from supervision import Detections
        except ModuleNotFoundError as error:
            raise OptionError(f"to_supervision needs {error.name}: pip install supervision") from None
        found = list(self.cutouts(threshold))
        masks = np.zeros((len(found), self.height, self.width), bool)
        for mask, (region, inside) in zip(masks, found, strict=True):
            left, top, right, bottom = region.box
            mask[top:bottom, left:right] = inside
        names = self.kind_names or ("anomaly",)
        kinds = [region.kind or "anomaly" for region, _ in found]
        return Detections(
            xyxy=np.array([region.box for region, _ in found], np.float32).reshape(-1, 4),
            mask=masks,
            confidence=np.array([region.peak for region, _ in found], np.float32),
            class_id=np.array([names.index(kind) for kind in kinds], int),
            data={"class_name": np.array(kinds, str)},
        )

    def _repr_html_(self) -> str:
        """How a notebook shows it: the picture, the map over it, and the score, in some tens of kilobytes."""
        try:
            pictures = [self.image, self.overlay(self.pixel_threshold)]
        except ValueError:  # it does not know its picture, or that is gone
            pictures = [visualization.heatmap(self.anomaly_map)]
        images = " ".join(f'<img src="{visualization.data_uri(p, visualization.SMALL)}" alt="">' for p in pictures)
        verdict = {None: "", True: " <b>anomalous</b>", False: " normal"}[self.is_anomalous]
        score = f"<b>{self.score:.4f}</b>{verdict} (global {self.global_score:.4f}, local {self.local_score:.4f})"
        words = [html.escape(line) for line in (self.class_name, self.note) if line]
        return f"<div>{images}<br>{'<br>'.join([score, *words])}</div>"

    def _kinds_of_regions(self, labels: np.ndarray, count: int) -> list[tuple[str, float] | tuple[()]]:
        """The kind of each of the regions 1 to `count` in `labels` (height, width), with its probability: the largest
        mean over the patches whose centres lie inside or, where there is none, of the nearest to the peak."""
        from scipy import ndimage

        if self.kind_map is None or not count:
            return [()] * count
        y, x = self._patch_centres()
        probabilities = self.kind_map.reshape(-1, len(self.kind_names)).astype(np.float32)
        region = labels[y.astype(int), x.astype(int)]
        sums, patches = np.zeros((count + 1, len(self.kind_names))), np.bincount(region, minlength=count + 1)
        np.add.at(sums, region, probabilities)
        for i in np.flatnonzero(patches[1:] == 0) + 1:
            top, left = ndimage.maximum_position(self.anomaly_map, labels, i)
            sums[i], patches[i] = probabilities[np.hypot(y - top, x - left).argmin()], 1
        means = sums[1:] / patches[1:, None]
        return [(self.kind_names[k], float(mean[k])) for mean, k in zip(means, means.argmax(1), strict=True)]

    def _patch_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """y and x in pixels of the centre of each patch, in the order of `kind_map`."""
        left, top = self.place.box[:2] if self.place else (0, 0)
        if self.tiles:
            y, x = self.tiles.patch_centres(self._seen)
        else:
            h, w = self.patch_map.shape
            y, x = ((np.arange(n) + 0.5) * length / n for n, length in zip((h, w), self._seen, strict=True))
            y, x = np.repeat(y, w), np.tile(x, h)
        return y + top, x + left

    def record(self) -> dict[str, Any]:
        """What a line of `results.jsonl` says of a picture, less its name and its files."""
        record: dict[str, Any] = {
            "score": self.score,
            "global_score": self.global_score,
            "local_score": self.local_score,
            "width": self.width,
            "height": self.height,
        }
        if self.is_anomalous is not None:
            record["is_anomalous"] = self.is_anomalous
        if self.references:
            record["p_value"] = self.p_value
        if self.evidence != "prompts" or self.references:
            record["evidence"] = self.evidence
        if self.kinds is not None:
            record["kinds"] = {kind: round(value, 4) for kind, value in self.kinds.items()}
            if self.pixel_threshold is not None:
                record["regions"] = [asdict(region) for region in self.regions(self.pixel_threshold)]
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
        """The map over the picture in fixed colours (0..1); with a threshold also the contours of its regions, and
        their kinds where prompts know them."""
        picture = visualization.overlay(self.image, self.anomaly_map)
        if threshold is None:
            return picture
        picture = visualization.contours(picture, self.mask(threshold))
        if self.kind_map is None:
            return picture
        regions = self.regions(threshold)[: visualization.MAX_LABELS]
        return visualization.labelled(picture, [(r.box, f"{r.kind} {r.kind_probability:.2f}") for r in regions])

    def save(self, folder: str | Path, stem: str | None = None) -> dict[str, Path]:
        """Write `<stem>_map.npy` (float32) and `<stem>_overlay.png` (with contours, if calibrated) into `folder`, made
        if need be, each whole or not at all; returns the paths as {"map": ..., "overlay": ...}. The stem is the
        picture's file name unless given.
        """
        folder = Path(folder)
        stem = stem or Path(source_name(self.source) or "image").stem
        paths = {"map": folder / f"{stem}_map.npy", "overlay": folder / f"{stem}_overlay.png"}
        overlay = self.overlay(self.pixel_threshold)
        with whole_file(paths["map"]) as file:
            np.save(file, self.anomaly_map)
        with whole_file(paths["overlay"]) as file:
            overlay.save(file, "PNG")
        return paths
