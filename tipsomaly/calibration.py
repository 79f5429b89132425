"""Thresholds from normal pictures: what share of them may be called anomalous is all that has to be said."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tipsomaly.files import write_atomically
from tipsomaly.hub import ModelError
from tipsomaly.images import ImageSource, brief
from tipsomaly.prompts import clean_class_name

if TYPE_CHECKING:
    from tipsomaly.pipeline import Pipeline


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one class under one pipeline's settings."""

    image_threshold: float
    """A picture is anomalous if its score is at least this."""
    pixel_threshold: float
    """A pixel is anomalous if the anomaly map is at least this."""
    class_name: str
    target_fpr: float
    pictures: int
    settings: Mapping[str, Any]
    """`Pipeline.settings` of the pipeline that was calibrated."""

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_atomically(Path(path), json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read a calibration file; ModelError, in one line, if it is something else."""
        try:
            calibration = cls(**json.loads(Path(path).expanduser().read_text(encoding="utf-8")))
            thresholds = (calibration.image_threshold, calibration.pixel_threshold)
            if not all(isinstance(t, float) and math.isfinite(t) for t in thresholds):
                raise ValueError("its thresholds are no numbers")
            if not isinstance(calibration.settings, dict) or not isinstance(calibration.class_name, str):
                raise ValueError("its settings or class name are not there")
            return calibration
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path}: not a calibration ({brief(error)})") from None

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ModelError, naming the difference, if a pipeline with these settings is not the one calibrated."""
        for name, ours in settings.items():
            theirs = self.settings.get(name)
            if ours != theirs:
                raise ModelError(f"this calibration was made with {name} {short(theirs)}, not {short(ours)}")


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


def short(value: object) -> object:
    """A setting as a message shows it: twelve characters of a digest are enough."""
    return value[:12] if isinstance(value, str) else value
