"""Figures of losses and ablations, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tipsomaly.studies.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def study(title: str, rows: Mapping[str, Metrics], ordered: bool) -> bytes:
    """The metrics of an ablation's rows, joined by lines where the rows are steps of one quantity."""
    figure = _figure()
    axes = figure.subplots()
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        values = [metrics.get(name) for metrics in rows.values()]
        if None not in values:
            axes.plot(list(rows), [100 * value for value in values], "o-" if ordered else "o", label=name)
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


def _figure() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 4), layout="constrained")


def _png(figure: "Figure") -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
