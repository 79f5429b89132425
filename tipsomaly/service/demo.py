"""The functions behind the page and its endpoints: what a visitor did wrong becomes one line."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from tipsomaly.detection import visualization
from tipsomaly.detection.calibration import Calibration
from tipsomaly.errors import ImageError
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.service import comparison, exports, localization, uploads, verdict
from tipsomaly.service.cards import EMPTY, alt, score_card, sentences
from tipsomaly.service.examples import Examples
from tipsomaly.service.exports import Inspection
from tipsomaly.service.space import Space

START = 0.5
"""The threshold of the map where no good pictures say more."""


@contextmanager
def explained(page: bool = True) -> Iterator[None]:
    """A visitor's mistake as one line without the server's paths: as HTML for the page, or for clients as it is."""
    safe = escape if page else str
    try:
        yield
    except ImageError as error:
        raise gr.Error(safe(f"This picture cannot be used: {uploads.reason(error)}."), print_exception=False) from None
    except ValueError as error:
        raise gr.Error(safe(str(error)), print_exception=False) from None


def chosen(image: str | None) -> str:
    """The picture, or a line that asks for one."""
    if image is None:
        raise gr.Error("Choose a picture first.", print_exception=False)
    return image


def moved(threshold: float, start: float) -> Any:
    """What becomes of the slider, which is never written to in vain: a visitor may be dragging it."""
    return gr.skip() if threshold == start else start


def begins(inspection: Inspection | None, threshold: float) -> float:
    """Where the slider of the map begins: at the calibrated threshold, as the slider says it, else where it is."""
    judged = inspection.result.pixel_threshold if inspection else None
    return threshold if judged is None else min(math.ceil(100 * judged) / 100, 1.0)


class Demo:
    """Handlers of events, over one Space. Their inputs and outputs are those of gradio's components."""

    def __init__(self, space: Space, examples: Examples) -> None:
        self.space, self.examples = space, examples
        self.bundled = verdict.Bundled(space, self.examples)

    def opening(self) -> tuple:
        """What a visitor finds: an example's picture, class and fixed prompts, and its inspection."""
        return tuple(dict(each) if isinstance(each, dict) else each for each in self._opening)  # gradio empties dicts

    @cached_property
    def _opening(self) -> tuple:
        example = self.examples.opening
        first = (str(example.picture), example.class_name, example.domain)
        inspected = self.inspect(*first, self.space.choices[0], START)
        return *first, *inspected, *self.redraw(inspected[0], begins(inspected[0], START), False)

    def inspect(
        self,
        image: str | None,
        class_name: str,
        domain: str,
        model: str,
        threshold: float,
        calibration: Calibration | None = None,
        before: Inspection | None = None,
    ) -> tuple:
        """A picture, to what the first two tabs show, less what `redraw` makes of it; `before` is what they did."""
        # the slider is the visitor's; only what a verdict put there goes with the verdict
        start = START if before and before.result.pixel_threshold is not None else threshold

        def emptied(card: str) -> tuple:
            return None, card, None, None, "", moved(threshold, start)

        if image is None:  # the picture was taken away
            return emptied(EMPTY)
        try:
            with explained():
                known = None if calibration else self.bundled.calibration(image, class_name, domain, model)
                inspection = self.space.inspect(image, class_name, domain, model, calibration or known)
                example = self.examples.find(image)
                twin = self.bundled.twin(example, class_name, domain, model) if known else None
        except gr.Error as error:  # nothing of another picture stays beside this one
            return emptied(f'<div class="card" role="alert">{error.message}</div>')
        judged = inspection.result.pixel_threshold is not None
        start = begins(inspection, start)
        return (
            inspection,
            score_card(inspection, example, self.bundled.WHERE if known else "", twin),
            gr.update(value=inspection.shown.overlay(start if judged else None), alt_text=alt(inspection)),
            exports.record(inspection.result),
            sentences(inspection),
            moved(threshold, start),
        )

    def own_class(self, inspection: Inspection | None, class_name: str, domain: str) -> tuple[str, str]:
        """Class and fixed prompts for a picture that a visitor brings after an example: not the example's."""
        before = self.examples.find(inspection.result.source) if inspection else None
        if before and (before.class_name, before.domain) == (class_name, domain):
            return "object", next(iter(ENSEMBLES))
        return class_name, domain

    def pick(self, event: gr.SelectData) -> list[str]:
        """An example's picture, class and fixed prompts."""
        example = self.examples.all[event.index]
        return [str(example.picture), example.class_name, example.domain]

    def redraw(self, inspection: Inspection | None, threshold: float | None, rescaled: bool) -> tuple:
        """What depends on the threshold and the scale, from the last run's maps: the model does not run again."""
        files = [gr.update(value=None, visible=False)] * len(localization.FILES)  # those of another threshold
        if inspection is None:
            return None, comparison.legend(), "", *files
        with explained():
            threshold = uploads.checked_threshold(threshold)
        shown = inspection.shown
        low, high = (float(shown.anomaly_map.min()), float(shown.anomaly_map.max())) if rescaled else (0.0, 1.0)
        heatmap = visualization.heatmap((shown.anomaly_map - low) / max(high - low, 1e-6))
        page = localization.html(
            replace(inspection, result=replace(inspection.result)), threshold
        )  # keeps no large map
        return (shown.image, heatmap), comparison.legend(low, high), page, *files

    def files(self, inspection: Inspection | None, threshold: float | None) -> Iterator[list[Any]]:
        """A button for each file of localization.FILES; gradio copies the files before the next step deletes them."""
        if inspection is None:
            raise gr.Error("Inspect a picture first.", print_exception=False)
        with explained(), TemporaryDirectory() as folder:
            threshold = uploads.checked_threshold(threshold)
            paths = exports.write_files(inspection.result, threshold, Path(folder))
            yield [gr.update(value=str(path), visible=True) for path in paths]
