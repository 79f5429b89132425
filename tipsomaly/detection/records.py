"""The folder that `tipsomaly detect` writes: results.jsonl with a line a picture, maps and overlays, and settings.json
with what they depend on. What is in it is done; another run with the same settings goes on from there."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tipsomaly.detection.formats import Stems
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.result import Result
from tipsomaly.errors import OptionError, short
from tipsomaly.files import file_name, only_writer, to_json, write_atomically
from tipsomaly.names import clean_class_name

RESULTS, SETTINGS = "results.jsonl", "settings.json"


def run_settings(pipe: Pipeline, class_name: str) -> dict[str, Any]:
    """What the results of a run depend on besides the pictures, for JSON."""
    settings = {**pipe.settings(), "class_name": clean_class_name(class_name)}
    if pipe.calibration:
        settings["thresholds"] = [pipe.calibration.image_threshold, pipe.calibration.pixel_threshold]
    if pipe.min_area:
        settings["min_area"] = pipe.min_area
    return settings


def check_settings(
    folder: str | Path, content: bytes, settings: Mapping[str, Any], remedy: str, free: Collection[str] = ()
) -> None:
    """Raise OptionError, naming the difference, if the results in a folder were made with other settings than these,
    but for those that are `free` to differ. `content` is the file there that says with which: JSON."""
    ours = json.loads(to_json(settings))
    try:
        theirs = json.loads(content)
        if not isinstance(theirs, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise OptionError(f"{folder}: no file says how the results there were made; {remedy}") from None
    for name in sorted((ours.keys() | theirs.keys()) - set(free)):
        if theirs.get(name) != ours.get(name):
            made = f"made with {name} {short(theirs.get(name))!r}, not {short(ours.get(name))!r}"
            raise OptionError(f"{folder}: the results there were {made}; {remedy}")


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a results.jsonl, in order. A line that is no whole record, as a power cut leaves it, is left out.
    Raises OSError if the file cannot be read."""
    with Path(path).open("rb") as file:
        for line in file:
            if record := parse_record(line):
                yield record


def parse_record(line: bytes) -> dict[str, Any] | None:
    """What a line of results.jsonl holds; None for one that is no whole record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("image"), str)
    return record if whole else None


def _stem(record: Mapping[str, Any]) -> str:
    """What the names of a picture's files begin with."""
    return str(record.get("map", "")).removesuffix("_map.npy")


class Records:
    """The results in a folder, to be continued; see `open_records`."""

    def __init__(self, folder: Path, file: IO[bytes], done: dict[str, str]) -> None:
        """`done` has the file-name stem of each picture that has a line in `file`."""
        self.folder, self._file, self._done = folder, file, done
        self._stems = Stems(done.values())
        self._overlays = {f"{stem}_overlay.png" for stem in done.values()}

    @property
    def images(self) -> Collection[str]:
        """The names of the pictures that have results, as the records spell them."""
        return self._done.keys()

    def has(self, source: str | Path) -> bool:
        """Whether there is a result of this picture."""
        return file_name(source) in self._done

    def made(self, source: str | Path) -> bool:
        """Whether this is no picture to score but an overlay of one, where pictures and results share a folder."""
        folder, name = os.path.split(source)
        return name in self._overlays and os.path.abspath(folder) == os.path.abspath(self.folder)

    def stem(self, source: str | Path) -> str:
        """What the names of a picture's files begin with: what they did, or what no other picture's do."""
        return self._done.get(file_name(source)) or self._stems(source)

    def save(self, result: Result, stem: str) -> dict[str, str]:
        """Write the map and the overlay of a picture; returns their names in the folder."""
        return {kind: path.name for kind, path in result.save(self.folder, stem).items()}

    def add(self, source: str | Path, record: Mapping[str, Any]) -> None:
        """Append a line, if the picture has none. If the disk does not take all of it, none of it stays, and the
        OSError names the file."""
        if self.has(source):
            return
        line = to_json(record).encode() + b"\n"
        start = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(start)
            error.filename = str(self.folder / RESULTS)
            raise
        if "error" not in record:
            self._done[file_name(source)] = _stem(record)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Say what the results depend on from now on."""
        write_atomically(self.folder / SETTINGS, to_json(settings, indent=2) + "\n")


@contextmanager
def open_records(
    folder: Path, settings: Mapping[str, Any], overwrite: bool = False, free: Collection[str] = ()
) -> Iterator[Records]:
    """A folder of results, made if need be, for this process alone. Lines with errors, and those that are not whole,
    are taken out: their pictures are scored again. With `overwrite` it begins with no results. The settings of results
    that are there must be these, but for those that are `free` to differ.

    Raises OptionError where there are results of other settings, FetchError while another process writes there, OSError
    where nothing can be written.
    """
    path = folder / RESULTS
    with only_writer(folder):
        old = [] if overwrite or not path.exists() else path.read_bytes().splitlines(keepends=True)
        kept: list[bytes] = []
        done: dict[str, str] = {}
        for line in old:
            record = parse_record(line)
            if record and "error" not in record and record["image"] not in done:
                kept.append(line)
                done[record["image"]] = _stem(record)
        if kept:
            content = (folder / SETTINGS).read_bytes() if (folder / SETTINGS).is_file() else b""
            check_settings(folder, content, settings, "choose another folder, or begin anew with --overwrite", free)
        if len(kept) < len(old) or not old:
            write_atomically(path, b"".join(kept))
        with path.open("ab", buffering=0) as file:
            records = Records(folder, file, done)
            records.write_settings(settings)
            yield records
