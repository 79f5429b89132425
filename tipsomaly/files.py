"""Files that are whole or not there, and the digests by which work that is done already is known again."""

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tipsomaly.errors import FetchError, TipsomalyError, printable


def expand(path: str | Path) -> Path:
    """`~` and `~user` as their folders; a user that there is not stays as it is written."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether it is there and a file; not for a name that cannot be looked at, be it too long or not allowed."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class _Writer:
    """What has only `write`. Given a whole file, numpy and PIL would write to it below Python, and then say of a full
    disk no more than that something failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, under a name of its own until it is whole: an interrupt or a full disk leaves the old one or the
    new one, never half of one, and of several writers the last one wins. An OSError names the file."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{_start(path)}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield cast(IO[bytes], _Writer(file))
        os.chmod(part, 0o666 & ~_umask())  # mkstemp makes files for one user alone
        os.replace(part, path)
    except BaseException as error:
        if part:
            Path(part).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all, see `whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def only_writer(folder: Path, lock_name: str = ".lock") -> Iterator[None]:
    """Make a folder of results, or what has this lock in it, for this process alone. Raises FetchError
    while another process writes there; the system frees the lock of one that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / lock_name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy = "another process writes there; wait for its end, or choose another folder"
        raise FetchError(f"{printable(folder)}: {busy}") from None
    try:
        yield
    finally:
        lock.release()


def to_json(content: object, indent: int | None = None) -> str:
    """JSON as every language reads it: in ASCII, without NaN or infinity, for which there is a TipsomalyError."""
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        raise TipsomalyError("a number among the results is not finite, so they are not written") from None


def file_name(path: str | Path) -> str:
    """A path as JSON holds it: bytes in it that are no UTF-8 are spelled out."""
    return str(path).encode("utf-8", "backslashreplace").decode()


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in. If all goes well it becomes `out`, or its files go into the folder that is
    there; otherwise it is gone and `out` is as it was. An OSError names `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{_start(out)}.", suffix=".partial", dir=out.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if out.is_dir():
            for path in sorted(staging.rglob("*")):
                target = out / path.relative_to(staging)
                if path.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
        else:
            staging.replace(out)
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(staging)):
            error.filename, error.filename2 = str(out), None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _start(path: Path) -> str:
    """The beginning of a file's name, in at most 80 bytes."""
    return os.fsencode(path.name)[:80].decode(errors="ignore")


def _umask() -> int:
    with _ASKING:  # two threads at once would leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


_ASKING = threading.Lock()


def digest(content: object) -> str:
    """Hexadecimal SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(*parts: str | bytes | Tensor) -> str:
    """Hexadecimal SHA-256 of the bytes of all parts."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()
