"""The tab that scores many pictures: its components, and what happens on it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from tipsomaly.detection.calibration import Calibration
from tipsomaly.service import batch, exports, uploads
from tipsomaly.service.exports import Row
from tipsomaly.service.space import MAX_GOOD, Space
from tipsomaly.service.uploads import visitors_class
from tipsomaly.service.verdict_panel import VerdictPanel

STEP = 8
"""Pictures between two words of how far it is."""
AT_ONCE = 8
"""Batches that take turns; more wait."""
LIMITS: dict[str, Any] = {"concurrency_limit": AT_ONCE, "concurrency_id": "batch"}
LOCALIZATION = "localization"
"""The id of the tab where a picture is opened."""
EMPTY = '<div class="card">The scores appear here.</div>'
WORDS = f"""
Many pictures of one class (the class, model and prompts are those beside the tabs); at most {uploads.MAX_BATCH}, as
files or in a zip.
"""


@dataclass
class Switch:
    """Whether a visitor asked to stop; one a visitor, which a running batch looks at."""

    stopped: bool = False


@dataclass(frozen=True)
class Given:
    """What a batch was made of, to find a picture of it again."""

    files: list[str]
    settings: tuple[str, str, str]  # class, fixed prompts, model

    def picture(self, number: object, folder: Path) -> Path:
        """See `uploads.kept`; a visitor's own script may send anything for a number."""
        return uploads.kept(self.files, number if isinstance(number, int) else -1, folder)


@dataclass(frozen=True)
class Step:
    """How far a batch is."""

    line: str
    rows: list[Row]
    files: list[str] | None = None
    """When all is done: to download, as long as the run that made them goes on."""


class BatchTab:
    """Made inside the tab; `connect` says when it runs."""

    def __init__(self, space: Space, verdicts: VerdictPanel, explained: Callable[..., AbstractContextManager]) -> None:
        """`verdicts` makes thresholds of good pictures. `explained` turns what a visitor did wrong into a line, as HTML
        unless it is given False."""
        self.space, self.verdicts, self.explained = space, verdicts, explained
        gr.Markdown(WORDS)
        self.files = gr.File(label="Pictures or zip", file_count="multiple", height=140, elem_id="batch")
        with gr.Row():
            self.run = gr.Button("Score the batch", variant="primary")
            self.stop = gr.Button("Stop")
        self.report = gr.Markdown()
        self.page = gr.HTML(EMPTY, js_on_load=batch.SCRIPT, apply_default_css=False)
        self.outputs = gr.File(label="Table (CSV) and overlays (zip)", file_count="multiple", interactive=False)
        self.switch, self.given = gr.State(Switch()), gr.State()

    def score(
        self,
        files: list[str] | None,
        class_name: str,
        domain: str,
        model: str,
        calibration: Calibration | None,
        switch: Switch,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple]:
        """Files to a line of how far it is, the page, files to download, and what was given; after a stop of what was
        scored until then."""
        settings = class_name, domain, model
        for step in self.steps(files, settings, calibration, progress, switch):
            if step.files is None:
                yield step.line, *[gr.skip()] * 3
            else:
                of = f"{visitors_class(class_name)}, fixed prompts: {domain}, {model}"
                yield step.line, batch.html(step.rows, of), step.files, Given(files or [], settings)

    def steps(
        self,
        files: list[str] | None,
        settings: tuple[str, str, str],
        calibration: Calibration | None,
        progress: gr.Progress,
        switch: Switch | None = None,
        page: bool = True,
    ) -> Iterator[Step]:
        if not files:
            raise gr.Error("Choose pictures or a zip first.", print_exception=False)
        rows: list[Row] = []
        listed, stopped = uploads.count(files), False
        taken, began = min(listed, uploads.MAX_BATCH), time.monotonic()
        with self.explained(page), TemporaryDirectory() as folder:
            out = Path(folder)
            for row in self.space.batch(files, *settings, calibration):
                rows.append(drawn(row, out / f"{len(rows)}.jpg"))
                progress((len(rows), max(taken, len(rows))), desc="Scoring", unit="pictures")
                if stopped := bool(switch and switch.stopped):
                    break
                if len(rows) % STEP == 0:  # here a run ends whose visitor left
                    left = (taken - len(rows)) * (time.monotonic() - began) / len(rows)
                    yield Step(f"{len(rows)} of {taken} pictures, about {left:.0f} s left …", rows)
            if not rows:
                raise ValueError("there is no picture in these files")
            exports.write_csv(exports.table(rows), out / "scores.csv")
            exports.write_overlays(rows, out / "overlays.zip")
            made = [str(out / "scores.csv"), str(out / "overlays.zip")]
            yield Step(summary(rows, listed - len(rows), stopped), rows, made)

    def open(self, given: Given | None, event: gr.EventData) -> Iterator[tuple]:
        """A picture of the batch as the page's picture, with what the batch was scored as, in Localization."""
        if given is None:
            raise gr.Error("Score the batch again.", print_exception=False)
        with self.explained(), TemporaryDirectory() as folder:
            path = given.picture(getattr(event, "index", None), Path(folder))
            yield str(path), *given.settings, gr.Tabs(selected=LOCALIZATION)

    def goods(self, given: Given | None, rate: float, event: gr.EventData) -> Iterator[tuple]:
        """The pictures that are ticked as good, to what the batch was scored as and all of `VerdictPanel.calibrate`."""
        numbers = getattr(event, "goods", None)
        if given is None or not isinstance(numbers, list):
            raise gr.Error("Score the batch again.", print_exception=False)
        with self.explained(), TemporaryDirectory() as folder:
            goods = []
            for i, number in enumerate(numbers[: MAX_GOOD + 1]):
                place = Path(folder) / str(i)
                place.mkdir()  # each picture of a zip has its own
                goods.append(str(given.picture(number, place)))
            for found in self.verdicts.calibrate(goods, rate, *given.settings):
                yield *given.settings, *found

    def connect(
        self,
        tabs: gr.Tabs,
        image: gr.Image,
        settings: Sequence[Any],
        judge: Callable[..., None],
        **limits: Any,
    ) -> None:
        """`settings` are class, fixed prompts and model; `judge` adds to an event that the picture is scored, and with
        `brings` that its result is brought into view; `limits` are of runs of the model that are no batches."""
        private: dict[str, Any] = {"api_visibility": "private"}
        shown = [self.report, self.page, self.outputs, self.given]
        # a stop of the run before is forgotten; one that comes while this run waits counts
        started = self.run.click(start, self.switch, self.page, queue=False, **private)
        verdicts = self.verdicts
        judged = self.page.submit(
            self.goods, [self.given, verdicts.rate], [*settings, *verdicts.outputs], **private, **limits
        )
        judge(judged.success)
        again = judged.success(start, self.switch, self.page, queue=False, **private)
        given = [self.files, *settings, verdicts.calibration, self.switch]
        scored = [each.then(self.score, given, shown, **private, **LIMITS) for each in (started, again)]
        # no scores beside other files
        self.files.change(lambda: ("", EMPTY, None, None), None, shown, cancels=scored, queue=False, **private)
        self.stop.click(stop, self.switch, self.report, queue=False, **private)
        opened = self.page.select(self.open, self.given, [image, *settings, tabs], show_progress="hidden", **private)
        judge(opened.success, brings=True)


def start(switch: Switch) -> str:
    """Forget an earlier stop; the switch stays the same, which a batch that runs looks at. The page is emptied: gradio
    would keep its ticks and its slider for the next one."""
    switch.stopped = False
    return EMPTY


def stop(switch: Switch) -> str:
    """Ask the visitor's batch to end with the picture that it is at."""
    switch.stopped = True
    return "Stopping …"


def drawn(row: Row, path: Path) -> Row:
    """The row with its map over its picture as a file instead of the picture in memory."""
    if row.result is None:
        return row
    replace(row.result).overlay(row.result.pixel_threshold).save(path, quality=90)  # of a copy: its map is not kept
    return replace(row, result=replace(row.result, source=None), overlay=path)


def summary(rows: list[Row], left_out: int, stopped: bool) -> str:
    """A batch in one line of Markdown."""
    failed = sum(row.error is not None for row in rows)
    text = f"**{len(rows) - failed} pictures scored**, {failed} could not be used."
    if stopped:
        text += f" Stopped: {left_out} were not looked at."
    elif left_out > 0:
        text += f" {left_out} more were left out: at most {uploads.MAX_BATCH} are taken in one batch."
    return text
