"""Pictures of a data set of Hugging Face, on the Hub or in a folder, read through their library `datasets`."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tipsomaly.data.archives import MAX_MEMBER
from tipsomaly.data.images import Named
from tipsomaly.errors import DatasetError, FetchError, ImageError, OptionError, explained, one_line, printable

SCHEME = "hf://"
FORM = f"{SCHEME}ORG/NAME[/CONFIG][:SPLIT] or {SCHEME}FOLDER[:SPLIT]"
_MASKS = ("mask", "ground_truth", "segmentation", "annotation")
"""Image columns that are called so, or with more around it, hold no pictures to score."""


class HubDataset:
    """The pictures of one split of a data set, streamed: a data set on the Hub is not downloaded first. Each is called
    `hf://NAME:SPLIT/NUMBER_FILE`, by its place in the split and the name of its file, if it has one."""

    def __init__(self, name: str) -> None:
        """`name` is as in FORM; a split need not be named if there is one alone, or one called "test". The first column
        of images that are no masks is taken.

        Raises OptionError for a name that is of another form, and without the library; DatasetError for what is not
        there or has no pictures; FetchError where the Hub cannot be reached.
        """
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise OptionError(f'{SCHEME} needs {error.name}: pip install "tipsomaly[hf]"') from None
        place, split = _parsed(name)
        splits = _load(datasets, place)
        names = ", ".join(map(str, splits))
        split = split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else "")
        if split not in splits:
            raise DatasetError(f"{name}: name a split: {names}" if not split else f"{name}: its splits are {names}")
        self.name, self._place = f"{SCHEME}{place}:{split}", place
        self.features, self.rows = splits[split].features or {}, splits[split]
        columns = [column for column, kind in self.features.items() if isinstance(kind, datasets.Image)]
        masks = [column for column in columns if any(word in column.lower() for word in _MASKS)]
        pictures = [column for column in columns if column not in masks]
        if not pictures:
            raise DatasetError(f"{self.name}: no column of pictures")
        self.column, self.masks = pictures[0], next(iter(masks), None)
        for column in columns:
            self.rows = self.rows.cast_column(column, datasets.Image(decode=False))

    def __iter__(self) -> Iterator[Named]:
        """Raises FetchError if the data set ends before it is at its end."""
        with explained(self.name, FetchError):
            for number, row in enumerate(self.rows.select_columns(self.column)):
                picture = row[self.column] or {}
                file = PurePosixPath(str(picture.get("path") or "").replace("\\", "/")).name
                name = f"{self.name}/{number:06}{file and '_'}{printable(file)}"
                try:
                    yield Named(name, self.content(picture))
                except ImageError as error:
                    yield Named(name, ImageError(f"{name}: {error}"))

    def content(self, picture: Mapping[str, Any]) -> bytes:
        """The bytes of what a column of images holds. Raises ImageError, which does not name the picture."""
        content, path = picture.get("bytes"), picture.get("path")
        if content is not None:
            return content
        if not path:
            raise ImageError("no picture in this row")
        if not self._is_own(path):  # else a data set could read what is on this machine
            raise ImageError("a file outside of the data set")
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                content = file.read(MAX_MEMBER + 1)
        except Exception as error:
            raise ImageError(f"cannot be read ({one_line(error)})") from None
        if len(content) > MAX_MEMBER:
            raise ImageError(f"more than {MAX_MEMBER >> 20} MiB")
        return content

    def _is_own(self, path: str) -> bool:
        outer = path.split("::")[-1]  # zip://inner::outer
        if os.path.isdir(self._place):
            folder = os.path.realpath(self._place)
            return os.path.realpath(outer).startswith(os.path.join(folder, ""))
        return outer.startswith(f"hf://datasets/{'/'.join(self._place.split('/')[:2])}@")


def _parsed(name: str) -> tuple[str, str]:
    """The place and the split, "" if none is named. Raises OptionError."""
    found = re.fullmatch(r"hf://(.+?)(?::([\w.]+))?", name)
    if not found or not (os.path.isdir(found[1]) or re.fullmatch(r"[\w.-]+/[\w.-]+(/[^/]+)?", found[1])):
        raise OptionError(f"{printable(name)}: neither a folder that is there nor of the form {FORM}")
    return found[1], found[2] or ""


def _load(datasets: Any, place: str) -> Mapping[str, Any]:
    """The splits of a data set, none of which is read yet. No code of the data set runs: since version 4 the library
    runs none."""
    is_folder = os.path.isdir(place)
    progress = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with explained(f"{SCHEME}{place}", DatasetError if is_folder else FetchError):
            if is_folder and (Path(place) / "state.json").is_file():
                return {"all": datasets.load_from_disk(place)}
            if is_folder and (Path(place) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(place)
            repository, config = (place, None) if is_folder else _config(place)
            return datasets.load_dataset(repository, config, streaming=True)
    finally:
        if not progress:
            datasets.enable_progress_bars()


def _config(place: str) -> tuple[str, str | None]:
    organisation, name, *config = place.split("/")
    return f"{organisation}/{name}", config[0] if config else None
