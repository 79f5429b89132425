"""A picture of a data set, and what tells that a data set has changed."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A picture of a data set."""

    image: Path
    mask: Path | None
    """Where the defect is; None for a normal picture, and in a data set without masks."""
    class_name: str
    defect: str
    """"good" for a normal picture."""
    label: int
    """1 for a defective picture, 0 for a normal one."""
    words: str | None = None
    """What the fixed sentences call it, if not by the name of its class."""

    @property
    def called(self) -> str:
        """The words for it in the fixed sentences."""
        return self.words or self.class_name


def by_class(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples by class: classes sorted, the samples of each in the order in which they are given."""
    groups = groupby(sorted(samples, key=attrgetter("class_name")), attrgetter("class_name"))
    return {name: list(group) for name, group in groups}


def states(samples: Iterable["Sample"]) -> list[list[object]]:
    """What changes when a data set does: of each sample its words, and its files with sizes and times."""

    def state(path: Path | None) -> list[object] | None:
        if path is None:
            return None
        stat = path.stat()
        return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]

    return [[s.class_name, s.words, s.defect, s.label, state(s.image), state(s.mask)] for s in samples]
