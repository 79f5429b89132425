"""Released files to this machine: whole and checked, or not at all. Hub repositories go through huggingface_hub; this
is for the plain web servers that Google and the authors released on."""

import base64
import hashlib
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from itertools import count
from pathlib import Path

from tqdm import tqdm

from tipsomaly.errors import FetchError
from tipsomaly.models.catalogue import Source

ATTEMPTS = 5
"""Tries in a row that may bring nothing before we give up; a try that brings bytes starts the count again."""

BACKOFF = 1.0
"""Seconds before the second try; doubled for each one after it, unless the server says when to come back."""

LONGEST_WAIT = 60.0
TIMEOUT = 30.0
CHUNK = 2**20


class _Cut(Exception):
    """The network failed; the message is the reason."""


@dataclass(frozen=True)
class Remote:
    """What a server says of a file before it is fetched."""

    source: Source
    size: int | None
    etag: str | None
    md5: str | None

    def partial(self, folder: Path) -> Path:
        """Where a download grows. Its name holds the version of the file, so that two are never joined."""
        version = re.sub(r"\W", "", self.etag or str(self.size))[-40:]
        return folder / f"{self.source.file_name}.{version}.partial"

    def missing(self, folder: Path) -> int:
        """Bytes still to come."""
        if self.size is None or (folder / self.source.file_name).exists():
            return 0
        return max(0, self.size - _size(self.partial(folder)))


def fetch(sources: tuple[Source, ...], folder: Path, extra: float = 0) -> list[dict[str, str | int]]:
    """Bring `sources` into `folder`, where finished ones are kept and begun ones go on; returns url, size and sha256 of
    each. `extra` times their size must stay free on the disk beyond them.

    Raises FetchError, in one line, for a server, a file or a disk that fails. Hold `lock` around it.
    """
    remotes = [_head(source) for source in sources]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(r.missing(folder) for r in remotes) + extra * sum(r.size or 0 for r in remotes)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise FetchError(
                f"{folder}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; make room, or set "
                "TIPSOMALY_CACHE to a folder on a larger disk"
            )
        return [_fetch(remote, folder) for remote in remotes]


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time into a piece of work; the others wait and say so. The system frees the lock of a
    process that dies."""
    from filelock import FileLock, Timeout

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = FileLock(path)
        try:
            waiting.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that prepares {path.stem}", file=sys.stderr, flush=True)
            waiting.acquire()
    try:
        yield
    finally:
        waiting.release()


def retry_after(value: str | None, attempt: int) -> float:
    """Seconds to wait before the next try; the server's wish counts up to LONGEST_WAIT."""
    try:
        return min(max(float(value or ""), 0), LONGEST_WAIT)
    except ValueError:  # none, or a date
        return min(BACKOFF * 2**attempt, LONGEST_WAIT)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full or read-only disk is one clear line. Network errors are OSErrors too: keep them out of here."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = error.filename or path
        raise FetchError(f"{where}: cannot write there ({reason}); TIPSOMALY_CACHE names another folder") from None


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError:  # an answer, not a failure of the network
        raise
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        raise _Cut(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__) from None


def _open(request: urllib.request.Request) -> HTTPResponse:
    """The response, after as many tries as a busy server needs. Raises FetchError for an answer that is final."""
    for attempt in count():
        try:
            with _network_errors():
                return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            busy = error.code == 429 or error.code >= 500
            if not busy or attempt + 1 == ATTEMPTS:
                raise FetchError(f"{request.full_url}: the server answers {error.code} {error.reason}") from None
            time.sleep(retry_after(error.headers.get("Retry-After"), attempt))
    raise AssertionError("unreachable")


def _head(source: Source) -> Remote:
    request = urllib.request.Request(source.url, method="HEAD", headers={"Accept-Encoding": "identity"})
    try:
        with _open(request) as response:
            headers = response.headers
    except _Cut as reason:
        raise FetchError(f"{source.url}: cannot be reached ({reason}); it takes a network, once") from None
    size = headers.get("Content-Length", "")
    hashes = re.search(r"md5=([\w+/]+=*)", ",".join(headers.get_all("x-goog-hash", [])))
    md5 = base64.b64decode(hashes[1]).hex() if hashes else None
    return Remote(source, int(size) if size.isdigit() else None, headers.get("ETag"), md5)


def _fetch(remote: Remote, folder: Path) -> dict[str, str | int]:
    path, partial = folder / remote.source.file_name, remote.partial(folder)
    failures, reason, have = 0, "the connection ended early", _size(partial)
    while not path.exists() and (remote.size is None or have < remote.size):
        try:
            _continue(remote, partial, have)
            if remote.size is None:  # then the end of the connection is the end of the file
                break
        except _Cut as error:
            reason = str(error)
        before, have = have, _size(partial)
        failures = 0 if have > before else failures + 1
        if failures == ATTEMPTS:
            raise FetchError(f"{remote.source.url}: {reason}, {have} bytes came and are kept; run again to go on")
        if remote.size is None or have < remote.size:
            time.sleep(retry_after(None, failures))
    whole = path if path.exists() else partial
    record: dict[str, str | int] = {"url": remote.source.url, "size": _size(whole), "sha256": _check(remote, whole)}
    whole.replace(path)
    return record


def _continue(remote: Remote, partial: Path, have: int) -> None:
    """Append what is missing, or write all of it where the server cannot continue."""
    headers = {"Accept-Encoding": "identity"}
    if have and remote.size is not None:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": remote.etag} if remote.etag else {})
    request = urllib.request.Request(remote.source.url, headers=headers)
    with _open(request) as response, partial.open("ab" if response.status == 206 else "wb") as file:
        bar = tqdm(
            desc=remote.source.file_name,
            total=remote.size,
            initial=file.tell(),
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with bar:
            while True:
                with _network_errors():
                    chunk = response.read(CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(remote: Remote, path: Path) -> str:
    """The SHA-256 of a file, if that and its size and MD5 are what they should be; else the file is deleted."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    for what, expected, found in (
        ("size", remote.size, _size(path)),
        ("sha256", remote.source.sha256, sha256.hexdigest()),
        ("md5", remote.md5, md5.hexdigest()),
    ):
        if expected is not None and expected != found:
            path.unlink()
            raise FetchError(
                f"{remote.source.url}: its {what} is {found}, expected {expected}; deleted, please try again"
            )
    return sha256.hexdigest()
