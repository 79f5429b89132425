"""Figures of losses and ablations, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tipsomaly.studies.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def study(title: str, rows: Mapping[str, Metrics], ordered: bool) -> bytes:
    """The metrics of an ablation's rows, joined by lines where the rows are steps of one quantity."""
    figure = _figure()
    axes = figure.subplots()
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        percent = [100 * value for metrics in rows.values() if (value := metrics.get(name)) is not None]
        if len(percent) == len(rows):
            axes.plot(list(rows), percent, "o-" if ordered else "o", label=name)
    axes.set(ylabel="percent", title=title)
    axes.margins(x=0.1)
    figure.legend(loc="outside lower center", ncols=3)
    return _png(figure)


def losses(history: Sequence[Sequence[float]], label: str) -> bytes:
    """The total loss of each step, for each epoch of `history`, and the means of the epochs."""
    figure = _figure()
    axes = figure.subplots()
    totals = [value for steps in history for value in steps]
    axes.plot(range(1, len(totals) + 1), totals, linewidth=1, label="batch")
    ends = [sum(len(steps) for steps in history[: epoch + 1]) for epoch in range(len(history))]
    axes.plot(ends, [sum(steps) / len(steps) for steps in history], "o-", label="mean of the epoch")
    axes.set(xlabel="step", ylabel=label)
    axes.legend()
    return _png(figure)


def over_time(seconds: np.ndarray, scores: np.ndarray, threshold: float | None) -> bytes:
    """A strip of the scores of a video's frames, with the threshold of a calibrated pipeline."""
    figure = _figure((10, 2.5))
    axes = figure.subplots()
    axes.plot(seconds, scores, ".-", linewidth=1)
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        axes.legend()
    axes.set(xlabel="seconds", ylabel="score")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    return _png(figure)


def confusion(names: Sequence[str], counts: np.ndarray) -> bytes:
    """A matrix (n, n) of counts: rows are what the pictures are, columns what they were taken for; the shade is the
    share of a row."""
    side = 2.5 + 0.45 * len(names)
    figure = _figure((side, side))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="most probable", ylabel="kind of the picture")
    return _png(figure)


def _figure(size: tuple[float, float] = (7, 4)) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _png(figure: "Figure") -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
