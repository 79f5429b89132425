"""Thresholds from normal pictures: runs a pipeline over them."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from tipsomaly.data.images import ImageSource
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.names import clean_class_name


def calibrate(
    pipeline: "Pipeline",
    images: Sequence[ImageSource],
    class_name: str = "object",
    *,
    target_fpr: float = 0.01,
    batch_size: int = 16,
    progress: bool = False,
) -> Calibration:
    """The smallest thresholds that at most `target_fpr` of these normal pictures, and of all their pixels, reach.

    The one for pictures is exact; the one for pixels is above that by at most 2^-14 of itself, since pixels are only
    counted, in bins of 512 float32 numbers. With fewer than 1 / target_fpr pictures no picture may reach the threshold.
    """
    if not 0 < target_fpr < 1:
        raise ValueError(f"the target false-positive rate must be between 0 and 1, not {target_fpr}")
    if not images:
        raise ValueError("a calibration needs normal pictures")
    scores, bins = [], np.zeros(_BINS, np.int64)
    results = pipeline.stream(images, class_name, batch_size=batch_size)
    for result in tqdm(results, total=len(images), unit="picture", disable=None if progress else True):
        scores.append(result.score)
        keys = (result.anomaly_map.ravel() + np.float32(0)).view(np.uint32) >> _SHIFT  # in the order of the scores
        bins += np.bincount(keys, minlength=_BINS)
    above = np.cumsum(bins[::-1])[::-1]  # the pixels of a bin and those above
    edge = np.searchsorted(-above, -_allowed(target_fpr, above[0]))  # the first bin that few enough reach
    return Calibration(
        image_threshold=float(np.nextafter(sorted(scores)[-1 - _allowed(target_fpr, len(scores))], np.inf)),
        pixel_threshold=float((np.uint32(edge) << _SHIFT).view(np.float32)),
        class_name=clean_class_name(class_name),
        target_fpr=target_fpr,
        pictures=len(scores),
        settings=pipeline.settings(),
    )


_SHIFT = np.uint32(9)
_BINS = (0x3F800000 >> 9) + 1  # up to the score 1


def _allowed(share: float, count: int) -> int:
    """floor(share * count), where 0.29 of 100 is 29."""
    return int(share * count + 1e-9)
