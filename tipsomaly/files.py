"""Files that are whole or not there, and the digests by which work that is done already is known again."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a name of its own first: an interrupt or a full disk leaves the old one or the new one, never
    half of one, and of several writers the last one wins. An OSError names the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(part, 0o666 & ~_umask())  # mkstemp makes files for one user alone
        os.replace(part, path)
    except BaseException as error:
        Path(part).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in. If all goes well it becomes `out`, or its files go into the folder that is
    there; otherwise it is gone and `out` is as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}.", suffix=".partial", dir=out.parent))
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
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
