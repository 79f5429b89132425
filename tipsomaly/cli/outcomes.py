"""What becomes of each picture that `tipsomaly detect` scores: its files, its record, its line."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tipsomaly.data.images import Named
from tipsomaly.detection.drift import Drift
from tipsomaly.detection.formats import Format
from tipsomaly.detection.records import Records
from tipsomaly.detection.result import Result
from tipsomaly.errors import ImageError, printable
from tipsomaly.files import file_name, to_json


class Outcomes:
    """Takes the pictures one by one; `failed` counts those that could not be used."""

    def __init__(self, records: Records | None, targets: Sequence[Format], drift: Drift | None, as_json: bool) -> None:
        self.records, self.targets, self.drift, self.as_json = records, targets, drift, as_json
        self.failed = 0

    def take(self, source: str | Path, outcome: Result | ImageError) -> None:
        """A picture's result, or why there is none, which is said."""
        if isinstance(outcome, Result):
            try:
                self.add(source, outcome)
                return
            except ImageError as error:  # the file changed since it was scored
                outcome = error
        tqdm.write(f"error: {outcome}", file=sys.stderr)
        self.fail(source, outcome)

    def add(self, source: str | Path, result: Result, more: Mapping[str, Any] | None = None) -> None:
        """Save a result: its files, then the formats, at last the record, with `more` in it, so that what has a record
        has everything. Raises ImageError if the file is no longer the picture that was scored."""
        known = result.source.more if isinstance(result.source, Named) else {}
        record = {"image": file_name(source), **known, **result.record(), **(more or {})}
        if self.records:
            stem = self.records.stem(source)
            record |= self.records.save(result, stem)
            for target in self.targets:
                target.add(file_name(source), result, stem)
            self.records.add(source, record)
        if self.drift:
            self.drift.add(result.score)
        if self.as_json:
            tqdm.write(to_json(record), file=sys.stdout)
        else:
            parts = f"{result.score:.4f} = global {result.global_score:.4f} + local {result.local_score:.4f}"
            verdict = {None: "", True: "  anomalous", False: "  normal   "}[result.is_anomalous]
            note = f"  ({result.note})" if result.note else ""
            kind = "  {} {:.2f}".format(*next(iter(result.kinds.items()))) if result.kinds else ""
            tqdm.write(f"{parts}{verdict}{kind}  {printable(source)}{note}", file=sys.stdout)

    def fail(self, source: str | Path, error: ImageError) -> None:
        """Record that a picture could not be used."""
        self.failed += 1
        record = {"image": file_name(source), "error": str(error)}
        for target in self.targets:
            target.fail(file_name(source), str(error))
        if self.records:
            self.records.add(source, record)
        if self.as_json:
            tqdm.write(to_json(record), file=sys.stdout)
