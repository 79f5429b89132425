"""Which engine is the fastest on this CPU: measured once, before the first picture."""

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tipsomaly.detection.export import export
from tipsomaly.detection.exported import Exported
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.models.sessions import PACKAGES

PARITY = 12
"""Drawn pictures, the hostile sizes among them, on which each engine must agree first."""


def fastest(pipeline: Pipeline, class_name: str, folder: Path, batch_size: int = 1) -> tuple[Pipeline | Exported, str]:
    """The pipeline, or its export into `folder` for the fastest of the engines that are installed, and the seconds of
    each for a picture of the input size, in words. Raises ModelError for a pipeline that cannot be exported, or for an
    engine that does not agree with it."""
    runs: dict[str, Pipeline | Exported] = {"torch": pipeline}
    for form in (form for form, package in PACKAGES.items() if find_spec(package)):
        export(pipeline, folder / form, form, [class_name], pictures=PARITY)
        runs[PACKAGES[form]] = Exported(folder / form)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*pipeline.image_size, 3), dtype=np.uint8) for _ in range(batch_size)]
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(4):  # they take turns; the first run is the slowest
        for name, run in runs.items():
            start = time.perf_counter()
            list(run.stream(pictures, class_name, batch_size=batch_size))
            seconds[name] = min(seconds[name], (time.perf_counter() - start) / batch_size)
    best = min(seconds, key=lambda name: seconds[name])
    return runs[best], f"{best} ({', '.join(f'{name} {value:.3f}' for name, value in seconds.items())} s a picture)"
