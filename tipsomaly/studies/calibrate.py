"""Thresholds from normal pictures: runs a pipeline over them."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from tqdm import tqdm

from tipsomaly.data.images import ImageSource
from tipsomaly.detection.calibration import Calibration, MapBy, PixelCounts, allowed
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.result import Result
from tipsomaly.names import clean_class_name


def calibrate(
    pipeline: "Pipeline",
    images: Iterable[ImageSource],
    class_name: str = "object",
    *,
    target_fpr: float = 0.01,
    map_by: MapBy = "pixels",
    batch_size: int = 16,
    progress: bool = False,
) -> Calibration:
    """The smallest thresholds that at most `target_fpr` of these normal pictures, and of all their pixels, reach; with
    `map_by="pictures"` that of the map is the smallest that at most so many pictures reach anywhere: higher, and what
    is outlined is then seldom a false alarm.

    The one for pictures is exact; the one for pixels is above that by at most 2^-14 of itself, since pixels are only
    counted, in bins of 512 float32 numbers. With fewer than 1 / target_fpr pictures no picture may reach the threshold.

    >>> calibrate(Pipeline.from_pretrained(), ["examples/pictures/concrete-good.jpg"], "concrete").save("concrete.json")
    >>> pipe = Pipeline.from_pretrained(calibration="concrete.json")
    >>> pipe("examples/pictures/concrete-defect.jpg", "concrete").is_anomalous
    True
    """
    results = pipeline.stream(images, class_name, batch_size=batch_size)
    count = len(images) if isinstance(images, Sized) else None
    shown = tqdm(results, total=count, unit="picture", disable=None if progress else True)
    return thresholds(shown, clean_class_name(class_name), target_fpr, pipeline.settings(), map_by)


def thresholds(
    results: Iterable[Result],
    class_name: str,
    target_fpr: float,
    settings: Mapping[str, Any],
    map_by: MapBy = "pixels",
) -> Calibration:
    """The same of what a pipeline with these settings says of normal pictures."""
    if not 0 < target_fpr < 1:
        raise ValueError(f"the target false-positive rate must be between 0 and 1, not {target_fpr}")
    scores: list[float] = []
    peaks: list[np.float32] = []  # as maps are
    pixels = PixelCounts()
    for result in results:
        scores.append(result.score)
        inside = result.place.take(result.anomaly_map) if result.place else result.anomaly_map
        peaks.append(inside.max())
        pixels.add(inside)
    if not scores:
        raise ValueError("a calibration needs normal pictures")

    def above(values: Sequence[float | np.float32]) -> float:
        highest = sorted(values)[-1 - allowed(target_fpr, len(values))]
        return float(np.nextafter(highest, type(highest)(np.inf)))  # the next number of its own kind

    return Calibration(
        image_threshold=above(scores),
        pixel_threshold=above(peaks) if map_by == "pictures" else pixels.threshold(target_fpr),
        class_name=class_name,
        target_fpr=target_fpr,
        pictures=len(scores),
        settings=settings,
        scores=tuple(sorted(scores)),
    )
