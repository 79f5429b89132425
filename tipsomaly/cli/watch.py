"""`tipsomaly detect --watch`: pictures are scored as they come, until an interrupt; nothing is lost or done twice."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tipsomaly.cli.options import fail
from tipsomaly.cli.outcomes import Outcomes
from tipsomaly.cli.webhook import check_address
from tipsomaly.data.arrivals import Arrivals, Signature, signature
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.records import Records, run_settings
from tipsomaly.detection.result import Result
from tipsomaly.errors import ImageError, ModelError, printable

POLL = 0.5
"""Seconds between two looks at the folders; four times as long as one look took, if that is longer."""

THRESHOLDS = "thresholds"
"""The one setting of the results in a folder that may change: each record has its own."""


def check_usage(names: Sequence[str], output: Path | None, formats: Sequence[str], webhook: str | None) -> list[Path]:
    """The folders to watch; wrong usage for anything else."""
    if output is None:
        fail("--watch needs --output DIR, whose results.jsonl says what is done", 2)
    folders = [Path(name) for name in names]
    for folder in folders:
        if not folder.is_dir():
            fail(f"{printable(folder)}: --watch takes folders that are there", 2)
        if folder.resolve() == output.resolve():
            fail("--output must be another folder than the watched one", 2)
    if wrong := [name for name in formats if name != "csv"]:
        fail(f"--watch writes --format csv; for {wrong[0]} give the command without --watch when all is there", 2)
    if webhook is not None:
        check_address(webhook)
    return folders


class _Thresholds:
    """The calibration file of a pipeline, which is read again whenever it was replaced."""

    def __init__(self, path: Path, pipe: Pipeline, class_name: str, records: Records) -> None:
        self._path, self._pipe, self._class_name, self._records = path, pipe, class_name, records
        self._seen: Signature | None = None

    def refresh(self) -> None:
        """Take what is in the file, if it is new and fits; otherwise what was there before goes on."""
        now = signature(self._path)
        if now is None or now == self._seen:
            return
        self._seen, before = now, self._pipe.calibration
        try:
            calibration = Calibration.load(self._path)
            calibration.check(self._pipe.settings())
            self._pipe.calibration = calibration
            self._pipe.stream([], self._class_name)  # says whether it is for this class
        except (ModelError, OSError) as error:
            self._pipe.calibration = before
            _say(f"error: {error}; the thresholds from before stay")
            return
        if before != calibration:
            self._records.write_settings(run_settings(self._pipe, self._class_name))
            _say(f"thresholds from {printable(self._path)}: {calibration.image_threshold:.4f} for pictures")


class _Watch:
    """One run: what it waits for and what it could not use."""

    def __init__(self, pipe: Pipeline, class_name: str, batch_size: int, outcomes: Outcomes, arrivals: Arrivals):
        self.pipe, self.class_name, self.batch_size = pipe, class_name, batch_size
        self.outcomes, self.arrivals = outcomes, arrivals
        self.scored, self.drifted = 0, False
        self.errors: dict[Path, ImageError] = {}
        self.unreadable: dict[str, str] = {}

    def score(self, ready: Sequence[Path]) -> None:
        stream = self.pipe.stream(ready, self.class_name, batch_size=self.batch_size, errors="yield")
        for source, outcome in zip(ready, stream, strict=True):
            try:
                if isinstance(outcome, ImageError):
                    raise outcome
                self.outcomes.add(source, outcome, _threshold(outcome))
            except ImageError as error:
                self._failed(source, error)
            else:
                self.scored += 1
                self.arrivals.done(source)
                self.errors.pop(source, None)
        drift = self.outcomes.drift
        note = drift.note() if drift else None
        if note and not self.drifted:
            _say(f"drift: {note}")
        self.drifted = bool(note)
        sys.stdout.flush()

    def _failed(self, source: Path, error: ImageError) -> None:
        if signature(source) is None:  # taken away or renamed before it was read
            return
        self.errors[source] = error
        if self.arrivals.failed(source):
            _say(f"error: {error}; it is tried again when it changes")

    def poll(self) -> list[Path]:
        ready = self.arrivals.poll()
        for folder, reason in self.arrivals.unreadable.items():
            if folder not in self.unreadable:
                _say(f"error: {printable(folder)}: cannot be read ({reason}); it is looked for again")
        self.unreadable = self.arrivals.unreadable
        return ready

    def end(self) -> None:
        """Record what could not be used and is still there, and say what was done."""
        for source, error in self.errors.items():
            if signature(source):
                self.outcomes.fail(source, error)
        failed = f", {self.outcomes.failed} could not be used" if self.outcomes.failed else ""
        _say(f"watch ended: {self.scored} pictures scored{failed}; the same command goes on from there")


def watch(
    pipe: Pipeline,
    folders: Sequence[Path],
    class_name: str,
    batch_size: int,
    outcomes: Outcomes,
    records: Records,
    calibration: Path | None,
) -> NoReturn:
    """Score what is in the folders and what comes, until KeyboardInterrupt, which is passed on."""
    arrivals = Arrivals(folders, records.has, records.folder)
    thresholds = _Thresholds(calibration, pipe, class_name, records) if calibration else None
    run = _Watch(pipe, class_name, batch_size, outcomes, arrivals)
    names = ", ".join(printable(folder) for folder in folders)
    _say(f"watching {names}: {len(records.images)} results in {printable(records.folder)}; Ctrl-C ends it")
    try:
        while True:
            start = time.perf_counter()
            ready = run.poll()
            pause = max(POLL, 4 * (time.perf_counter() - start))
            for i in range(0, len(ready), 4 * batch_size):
                if thresholds:
                    thresholds.refresh()
                run.score(ready[i : i + 4 * batch_size])
            time.sleep(pause)
    except KeyboardInterrupt:
        run.end()
        raise


def _threshold(result: Result) -> dict[str, Any]:
    return {} if result.image_threshold is None else {"image_threshold": result.image_threshold}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
