"""Thresholds from normal pictures: what share of them may be called anomalous is all that has to be said."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tipsomaly.errors import ModelError, explained, short
from tipsomaly.files import expand, to_json, write_atomically

MapBy = Literal["pixels", "pictures"]
"""What a share of false alarms in the maps is of: all pixels, or the pictures in which there is any."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one class under one pipeline's settings.

    >>> from tipsomaly import Calibration
    >>> known = Calibration(1.25, 0.5, "tile", target_fpr=0.01, pictures=99, settings={})
    >>> expected, most = known.false_alarms
    >>> f"{expected:.2%}, {most:.2%}"
    '1.00%, 2.98%'
    """

    image_threshold: float
    """A picture is anomalous if its score is at least this."""
    pixel_threshold: float
    """A pixel is anomalous if the anomaly map is at least this."""
    class_name: str
    target_fpr: float
    pictures: int
    settings: Mapping[str, Any]
    """`Pipeline.settings` of the pipeline that was calibrated."""
    scores: tuple[float, ...] = ()
    """Image scores of the normal pictures, ascending; files of the first version have none."""

    @property
    def false_alarms(self) -> tuple[float, float]:
        """The share of other normal pictures that reach the image threshold: expected, and what it is at most in 95 %
        of draws of as many normal pictures. Of the maximum of n these are 1 / (n + 1) and 1 - 0.05^(1 / n)."""
        expected, most = share_above(allowed(self.target_fpr, self.pictures), self.pictures, 0.95)
        return expected, most

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_atomically(Path(path), to_json(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read a calibration file; ModelError, in one line, if it is something else."""
        path = expand(path)
        if not path.is_file():
            raise ModelError(f"{path}: No such file")
        with explained(f"{path}: not a calibration"):
            content = json.loads(path.read_text(encoding="utf-8"))
            calibration = cls(**content)
            for value in (calibration.image_threshold, calibration.pixel_threshold, calibration.target_fpr):
                if type(value) not in (int, float) or not math.isfinite(value):
                    raise ValueError("its thresholds are no numbers")
            if not all(type(score) in (int, float) and math.isfinite(score) for score in calibration.scores):
                raise ValueError("its scores are no numbers")
            if not isinstance(calibration.settings, dict) or not isinstance(calibration.class_name, str):
                raise ValueError("its settings or class name are not there")
            return replace(calibration, scores=tuple(calibration.scores))

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ModelError, naming the difference, if a pipeline with these settings is not the one calibrated."""
        for name, ours in settings.items():
            theirs = self.settings.get(name)
            if ours != theirs:
                raise ModelError(f"this calibration was made with {name} {short(theirs)}, not {short(ours)}")


class PixelCounts:
    """How many pixels of maps reach which score: in bins of 512 float32 numbers, in constant memory."""

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, anomaly_map: np.ndarray) -> None:
        """A map (H, W), or pixels of one, float32 in [0, 1]."""
        keys = (anomaly_map.ravel() + np.float32(0)).view(np.uint32) >> _SHIFT  # in the order of the scores
        self._bins += np.bincount(keys, minlength=_BINS)

    def threshold(self, share: float) -> float:
        """The smallest that at most this share of the pixels reach, or above that by at most 2^-14 of itself."""
        above = np.cumsum(self._bins[::-1])[::-1]  # the pixels of a bin and those above
        edge = np.searchsorted(-above, -allowed(share, above[0]))  # the first bin that few enough reach
        return float((np.uint32(edge) << _SHIFT).view(np.float32))


_SHIFT = np.uint32(9)
_BINS = (0x3F800000 >> 9) + 1  # up to the score 1


def allowed(share: float, count: int) -> int:
    """floor(share * count), where 0.29 of 100 is 29."""
    return int(share * count + 1e-9)


def share_above(above: int, pictures: int, *quantiles: float) -> tuple[float, ...]:
    """The share of other normal pictures that reach the score which `above` of so many pictures exceed: expected, and
    quantiles of it. Of n scores drawn alike, the share of others above the k-th largest is beta(k, n + 1 - k), whatever
    their distribution. Of a threshold between two scores it is said of the lower one, and so too much; one that all n
    reach is taken for the lowest of them where quantiles are low, and may let everything pass where they are high."""
    from scipy.stats import beta

    if above >= pictures:
        return 1.0, *(q ** (1 / pictures) if q < 0.5 else 1.0 for q in quantiles)
    a, b = above + 1, pictures - above
    return a / (pictures + 1), *beta.ppf(quantiles, a, b).tolist()
