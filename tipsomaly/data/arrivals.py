"""Pictures that come into folders while these are watched: each is given out once it has stopped to change."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tipsomaly.data.images import SUFFIXES
from tipsomaly.errors import one_line

PATIENCE = 4
"""Polls after which a picture that could not be used is tried once more before it is called damaged: writers pause."""
RETRY = 600
"""Polls after which a damaged one is tried again though it did not change: it may only have been locked."""

Signature = tuple[int, int, int]
"""Size in bytes, time of the last change in nanoseconds, number of the file on its disk."""


def signature(path: str | Path) -> Signature | None:
    """What changes when a file does; None for what is no file, or cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino) if stat.S_ISREG(status.st_mode) else None


@dataclass
class _Waiting:
    """A picture that has no result yet."""

    signature: Signature
    due: int
    """The poll at which it is to be tried, unless it changes before."""
    failures: int = 0
    """How often it could not be used as it is now."""


class Arrivals:
    """Whatever has a picture's name in folders and their subfolders, and no result. Time is counted in polls; a picture
    is ready when its signature is that of the poll before."""

    def __init__(self, folders: Sequence[Path], known: Callable[[Path], bool], leave_out: Path) -> None:
        """`known` says whether a picture has a result. `leave_out` is a folder that is not looked into: where the
        results go, overlays among them."""
        self.unreadable: dict[str, str] = {}
        """The folders that the last poll could not read, and why."""
        self._folders, self._known, self._leave_out = folders, known, os.path.realpath(leave_out)
        self._done: set[str] = set()
        self._waiting: dict[str, _Waiting] = {}
        self._called_damaged: set[str] = set()
        self._polls = 0

    def poll(self) -> list[Path]:
        """The pictures that are ready, those that changed first first. Of each it is to be said what came of it, by
        `done` or `failed`."""
        self._polls += 1
        self.unreadable = {}
        found: dict[str, _Waiting] = {}
        for path in (path for folder in self._folders for path in self._pictures(str(folder))):
            if path in self._done:
                continue
            if self._known(Path(path)):
                self._done.add(path)
            elif now := signature(path):
                before = self._waiting.get(path)
                found[path] = before if before and before.signature == now else _Waiting(now, self._polls + 1)
        self._waiting = found
        ready = [path for path, waiting in found.items() if waiting.due <= self._polls]
        return [Path(path) for path in sorted(ready, key=lambda path: (found[path].signature[1], path))]

    def done(self, path: Path) -> None:
        """It has a result: it is not given out again, whatever becomes of the file."""
        self._done.add(str(path))
        self._called_damaged.discard(str(path))

    def failed(self, path: Path) -> bool:
        """It could not be used as it was when it was given out. Returns whether that is to be said: once for each
        picture, and not before it was tried twice. It is given out again when it changes."""
        waiting = self._waiting[str(path)]
        waiting.failures += 1
        waiting.due = self._polls + (PATIENCE if waiting.failures == 1 else RETRY)
        if waiting.failures == 1 or str(path) in self._called_damaged:
            return False
        self._called_damaged.add(str(path))
        return True

    def _pictures(self, folder: str) -> Iterator[str]:
        inner: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                        yield entry.path
        except OSError as error:
            self.unreadable[folder] = error.strerror or one_line(error)
        for path in inner:
            if os.path.realpath(path) != self._leave_out:
                yield from self._pictures(path)
