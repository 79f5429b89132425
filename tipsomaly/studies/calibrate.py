"""Thresholds from normal pictures: runs a pipeline over them."""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
from tqdm import tqdm

from tipsomaly.data.images import ImageSource
from tipsomaly.detection.calibration import Calibration, PixelCounts, allowed
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.result import Result
from tipsomaly.names import clean_class_name


def calibrate(
    pipeline: "Pipeline",
    images: Iterable[ImageSource],
    class_name: str = "object",
    *,
    target_fpr: float = 0.01,
    batch_size: int = 16,
    progress: bool = False,
) -> Calibration:
    """The smallest thresholds that at most `target_fpr` of these normal pictures, and of all their pixels, reach.

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
    return thresholds(shown, clean_class_name(class_name), target_fpr, pipeline.settings())


def thresholds(
    results: Iterable[Result], class_name: str, target_fpr: float, settings: Mapping[str, Any]
) -> Calibration:
    """The same of what a pipeline with these settings says of normal pictures."""
    if not 0 < target_fpr < 1:
        raise ValueError(f"the target false-positive rate must be between 0 and 1, not {target_fpr}")
    scores, pixels = [], PixelCounts()
    for result in results:
        scores.append(result.score)
        pixels.add(result.place.take(result.anomaly_map) if result.place else result.anomaly_map)
    if not scores:
        raise ValueError("a calibration needs normal pictures")
    scores.sort()
    return Calibration(
        image_threshold=float(np.nextafter(scores[-1 - allowed(target_fpr, len(scores))], np.inf)),
        pixel_threshold=pixels.threshold(target_fpr),
        class_name=class_name,
        target_fpr=target_fpr,
        pictures=len(scores),
        settings=settings,
        scores=tuple(scores),
    )
