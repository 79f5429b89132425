"""Files that are whole or not there, and the digests by which work that is done already is known again."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tipsomaly.datasets import Sample


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name first: an interrupt leaves the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)


def digest(content: object) -> str:
    """Hexadecimal SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def states(samples: Iterable["Sample"]) -> list[list[object]]:
    """What changes when a data set does: of each sample its words, and its files with sizes and times."""

    def state(path: Path | None) -> list[object] | None:
        if path is None:
            return None
        stat = path.stat()
        return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]

    return [[s.class_name, s.defect, s.label, state(s.image), state(s.mask)] for s in samples]
