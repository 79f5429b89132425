"""What a visitor sends, with all its limits."""

import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tipsomaly.data.archives import zip_members
from tipsomaly.data.images import ImageSource, LoadedImage, load_image
from tipsomaly.data.masks import mask_pixels
from tipsomaly.errors import DatasetError, ImageError, printable
from tipsomaly.names import clean_class_name
from tipsomaly.prompts.sentences import ENSEMBLES, PromptEnsemble

MAX_PIXELS = 64_000_000
"""Of a visitor's picture: a photograph of 48 megapixels and some more."""
ENOUGH_PIXELS = 25_000_000
"""Larger pictures are reduced while they are decoded: maps and overlays are drawn at a picture's size."""
MAX_NAME = 100
"""Characters of a class name or of a phrase."""
MAX_PHRASES = 20
MAX_BATCH = 500
"""Pictures in a batch."""
MAX_FILE = 50 * 2**20
"""Bytes of an upload, and of a picture in a zip once it is unpacked."""
MAX_UNPACKED = 2**30
"""Bytes out of the zips of a batch."""


def visitors_class(name: str | None) -> str:
    name = clean_class_name(name or "")
    if len(name) > MAX_NAME:
        raise ValueError(f"the class name has {len(name)} characters, at most {MAX_NAME} are taken")
    return name


def checked_threshold(value: float | str | None) -> float:
    """A threshold of the map, as a number or its text. Raises ValueError unless it is in [0, 1], as NaN and an emptied
    field are not."""
    try:
        number = float("nan" if value is None else value)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 1:
        raise ValueError("the threshold is a number from 0 to 1")
    return number


def own_prompts(normal: str, abnormal: str) -> PromptEnsemble | None:
    """Phrases, one a line, in the templates of the industrial ensemble; `{}` stands for the class name, and a phrase
    without it is put before the name: "rusty" means "rusty {}". None if both are empty."""
    phrases = []
    for text in (normal, abnormal):
        lines = [" ".join(line.split()) for line in (text or "").splitlines() if line.strip()]
        if len(lines) > MAX_PHRASES or any(len(line) > MAX_NAME for line in lines):
            raise ValueError(f"at most {MAX_PHRASES} phrases of {MAX_NAME} characters are taken")
        phrases.append([line if "{}" in line else f"{line} {{}}" for line in lines])
    if not any(phrases):
        return None
    if not all(phrases):
        raise ValueError("give at least one phrase for each state, normal and abnormal")
    return PromptEnsemble(tuple(phrases[0]), tuple(phrases[1]), ENSEMBLES["industrial"].templates)


def photograph(source: ImageSource) -> LoadedImage:
    """A visitor's picture, in bounded memory. Raises ImageError."""
    return load_image(source, MAX_PIXELS, ENOUGH_PIXELS)


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """bool (height, width): where a mask picture is defective, as in a data set. Raises ValueError, in one line, if it
    is not a picture or if its size is not `size` = (width, height)."""
    try:
        mask = mask_pixels(Path(path), MAX_PIXELS)
    except DatasetError as error:
        raise ValueError(f"This mask cannot be used: {reason(error)}.") from None
    if mask.shape[::-1] != size:
        (width, height), (h, w) = size, mask.shape
        raise ValueError(f"the mask has {w} x {h} pixels, the picture {width} x {height}")
    return mask


def pictures(files: Iterable[str | Path]) -> Iterator[tuple[str, "ImageSource | ImageError"]]:
    """(name, picture or error) of files and of the files in zips. Names are only ever shown."""
    left = MAX_UNPACKED
    for file in map(Path, files):
        if zipfile.is_zipfile(file):
            left = yield from _unzipped(file, left)
        else:
            yield _label(file.name), file


def count(files: Iterable[str | Path]) -> int:
    """How many entries `pictures` hands out at most, from the lists in the zips alone: nothing is unpacked."""
    return sum(_members(file) for file in map(Path, files))


def kept(files: Sequence[str | Path], number: int, folder: Path) -> Path:
    """The picture that `pictures` hands out as the `number`th, from 0, if it does so without an error; one of a zip is
    written into `folder`. Raises ValueError if there is none, ImageError if it cannot be unpacked."""
    for file in map(Path, files) if number >= 0 else ():
        if number >= (entries := _members(file)):
            number -= entries
        elif not file.exists():
            raise ValueError("the files of this batch were deleted: choose them again")
        elif not zipfile.is_zipfile(file):
            return file
        else:
            path, inside = folder / "picture", zip_members(file)
            path.write_bytes(next(islice(inside, number, None)).read(MAX_FILE))
            return path
    raise ValueError("there is no such picture in this batch")


def _members(file: Path) -> int:
    try:
        return sum(1 for _ in zip_members(file))
    except ImageError:  # most files are no zips
        return 1


def _unzipped(path: Path, left: int) -> Generator[tuple[str, "ImageSource | ImageError"], None, int]:
    """The files of a zip, as long as `left` bytes last; returns what is left of them."""
    try:
        for member in zip_members(path):
            limit = min(MAX_FILE, left)
            try:
                content = member.read(limit)
                left -= len(content)
                yield _label(member.name), content
            except ImageError as error:
                left -= limit
                yield _label(member.name), ImageError(f"zip: {error}")
    except ImageError as error:
        yield _label(path.name), ImageError(f"zip: {error}")
    return left


def _label(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 120 else f"…{name[-119:]}"


def load_or_error(source: "ImageSource | ImageError") -> LoadedImage | ImageError:
    try:
        return source if isinstance(source, ImageError) else photograph(source)
    except ImageError as error:
        return error


def reason(error: ImageError | DatasetError) -> str:
    """What is wrong with a picture, without the place where it lies here."""
    return str(error).split(": ", 1)[-1]
