"""Pictures in zip and tar archives, read one by one where they are: nothing is unpacked to a disk."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tipsomaly.data.images import SUFFIXES, Named
from tipsomaly.errors import ImageError, one_line, printable

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
"""What the name of an archive ends in."""
MAX_MEMBER = 128 * 2**20
"""Bytes of a picture in an archive: a batch of them is in memory at once."""
MAX_HEADER = 2**20
"""Bytes of what a tar says of one member, its name among them."""


def is_archive(name: str | Path) -> bool:
    """Whether it is called as an archive is."""
    return str(name).lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    """Its path there, for people and records: printable, relative, without `..`, and no other member's."""
    read: Callable[[int], bytes]
    """Its content, of at most so many bytes, whatever the archive says of its size; to be called before the next member
    is asked for. Raises ImageError, which names neither the archive nor the member."""


class Archive:
    """The pictures in an archive, each as it comes; of one that cannot be had, why. Other files are passed over, but an
    archive in an archive is said."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Named]:
        found = False
        try:
            for member in members(self.path):
                nested = is_archive(member.name)
                if nested or PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    found = True
                    yield self._picture(member, nested)
        except ImageError as error:
            yield Named(str(self.path), ImageError(f"{printable(self.path)}: {error}"))
        else:
            if not found:
                yield Named(str(self.path), ImageError(f"{printable(self.path)}: no pictures in this archive"))

    def _picture(self, member: Member, nested: bool) -> Named:
        name = f"{self.path}/{member.name}"
        try:
            if nested:
                raise ImageError("an archive in an archive: unpack the outer one")
            return Named(name, member.read(MAX_MEMBER))
        except ImageError as error:
            return Named(name, ImageError(f"{printable(name)}: {error}"))


def members(path: Path) -> Iterator[Member]:
    """The files in an archive, in its order, without what a Mac or a dot hides. Raises ImageError, after those before
    it, for what is damaged; it does not name the archive."""
    return zip_members(path) if str(path).lower().endswith(".zip") else _explained(_tar_members(path))


def zip_members(path: Path) -> Iterator[Member]:
    """The same of a zip, whatever it is called."""
    return _explained(_zip_members(path))


def _explained(members: Iterator[Member]) -> Iterator[Member]:
    try:
        yield from members
    except ImageError:
        raise
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or not error.strerror:
            raise ImageError(f"damaged ({one_line(error)})") from None
        raise ImageError(f"cannot be read ({error.strerror})") from None
    except Exception as error:  # zipfile and tarfile raise nearly anything
        raise ImageError(f"damaged or no archive of this kind ({one_line(error)})") from None


def _zip_members(path: Path) -> Iterator[Member]:
    names = _Names()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or _hidden(info.filename):
                continue

            def read(limit: int, info: zipfile.ZipInfo = info) -> bytes:
                if info.flag_bits & 1:
                    raise ImageError("cannot be unpacked: it is encrypted")
                with _readable(info.file_size, limit), archive.open(info) as file:
                    content = file.read(limit + 1)
                if len(content) > limit:  # whatever the header says
                    raise _too_large(limit)
                return content

            yield Member(names(info.filename), read)


def _tar_members(path: Path) -> Iterator[Member]:
    names = _Names()
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        bounded = _Bounded(gzip.GzipFile(fileobj=file) if zipped else file)
        with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
            end = 0
            while info := archive.next():
                if archive.offset <= end:  # a negative size: it would begin again
                    raise ImageError("damaged: a file of negative size")
                end = archive.offset
                archive.members.clear()  # of a large archive it would keep them all
                if info.isdir() or _hidden(info.name):
                    continue

                def read(limit: int, info: tarfile.TarInfo = info) -> bytes:
                    if not info.isfile():
                        raise ImageError("a link or a device, not a file")
                    with _readable(info.size, limit):
                        content = archive.extractfile(info)
                        assert content is not None  # as it is a file
                        bounded.most = limit
                        try:
                            return content.read(info.size)
                        finally:
                            bounded.most = MAX_HEADER

                yield Member(names(info.name), read)
            bounded.seek(archive.offset)  # tarfile takes what is no header for the end
            if any(bounded.read(tarfile.BLOCKSIZE)):
                raise ImageError("damaged: what follows cannot be read")


class _Bounded:
    """A file of which no more is read at once than is allowed: tarfile takes headers for as long as they say."""

    def __init__(self, file: io.BufferedIOBase | gzip.GzipFile) -> None:
        self._file, self.most = file, MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.most:
            raise ImageError(f"damaged: a header of {size} bytes")
        return self._file.read(size)


class _Names:
    """Makes names of members safe and unique."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}  # and the last number that was put after each

    def __call__(self, name: str) -> str:
        parts = [part for part in printable(name.replace("\\", "/")).split("/") if part not in ("", ".", "..")]
        path = PurePosixPath(*parts or ["file"])
        safe = first = str(path)
        number = self._used.get(first, 1)
        while safe in self._used:
            number += 1
            safe = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
        self._used[first] = number
        self._used.setdefault(safe, 1)
        return safe


def _hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".") or "__MACOSX" in name


@contextmanager
def _readable(size: int, limit: int) -> Iterator[None]:
    if size > limit:
        raise _too_large(limit)
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be unpacked ({one_line(error)})") from None


def _too_large(limit: int) -> ImageError:
    return ImageError(f"more than {limit >> 20} MiB unpacked")
