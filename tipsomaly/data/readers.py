"""What a data set on disk is read by: a reader for each layout, and what readers share.

A reader takes the folder and the split. A mask that is not there is None: `read_dataset` says what that means.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tipsomaly.data.images import MAX_PIXELS, SUFFIXES
from tipsomaly.data.masks import mask_pixels
from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError, one_line, printable

NORMAL = frozenset(("good", "ok"))
"""Folders of normal pictures; any other folder is named after a defect."""

MASK_ENDINGS = ("_mask", "", "_label", "_segmentation")
"""A mask has the name of its picture and one of these, and any suffix."""


def read_meta(root: Path, split: str) -> Iterator[Sample]:
    path = root / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        splits = {key.lower(): classes for key, classes in meta.items()}  # AnomalyCLIP writes "Test" for DAGM
        entries = [(name, dict(item)) for name, items in splits.get(split, {}).items() for item in items]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        form = '{"test": {CLASS: [{"img_path": ...}, ...]}}'
        raise DatasetError(f"{printable(path)}: not of the form {form} ({one_line(error)})") from None
    for name, item in entries:
        image, mask, class_name = item.get("img_path"), item.get("mask_path"), item.get("cls_name", name)
        yield _listed(root, path, image, mask, class_name, str(item.get("specie_name") or ""), item.get("anomaly"))


def read_visa(root: Path, split: str) -> Iterator[Sample]:
    path = root / "split_csv" / "1cls.csv"
    labels: dict[str, dict[str, str]] = {}  # what is wrong with each picture of a class
    for row in _rows(path, ("object", "split", "label", "image", "mask")):
        if row["split"] == split:
            image = row["image"]
            sample = _listed(root, path, image, row["mask"], row["object"], "anomaly", row["label"])
            folder = sample.image.relative_to(root).parts[0]
            if folder not in labels:
                table = root / folder / "image_anno.csv"
                rows = _rows(table, ("image", "label")) if table.is_file() else ()
                labels[folder] = {line["image"]: line["label"] for line in rows}
            yield replace(sample, defect=labels[folder].get(image) or "anomaly") if sample.label else sample


def read_headct(root: Path, split: str) -> Iterator[Sample]:
    path, folder = root / "labels.csv", _unwrapped(root / "head_ct")
    for row in _rows(path, ("id", "hemorrhage")):
        yield _listed(folder, path, f"{row['id']:0>3}.png", None, "headct", "hemorrhage", row["hemorrhage"])


def read_dagm(root: Path, split: str) -> Iterator[Sample]:
    for outer in folders(root, "Class*"):
        folder = _unwrapped(outer) / split.capitalize()
        if not (folder / "Label").is_dir():
            raise DatasetError(f"{printable(folder / 'Label')}: no such folder, which says what is defective")
        masks, table = _by_stem(folder / "Label"), folder / "Label" / "Labels.txt"
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else []
        rows = [line.split() for line in lines]  # number, 1 if defective, picture, 0, mask or 0
        defective = {row[2].lower() for row in rows if len(row) > 2 and row[1] == "1"}
        for image in _pictures(folder):
            mask = masks.get(f"{image.stem}_label".lower())
            label = int(mask is not None or image.name.lower() in defective)
            yield Sample(image, mask, outer.name, "defect" if label else "good", label)


def read_sdd(root: Path, split: str) -> Iterator[Sample]:
    for folder in folders(root, "kos*"):
        found = _by_stem(folder)
        for image in _pictures(folder):
            if image.stem.lower().endswith("_label"):
                continue
            mask = found.get(f"{image.stem}_label".lower())
            if mask is None:
                raise DatasetError(f"{printable(image)}: no {image.stem}_label.bmp beside it, which shows its defects")
            label = int(mask_pixels(mask, MAX_PIXELS).any())  # a normal picture has a mask, too: a black one
            kind = "defect" if label else "good"
            yield Sample(image, mask if label else None, "electrical commutators", kind, label)


def read_mvtec(root: Path, split: str) -> Iterator[Sample]:
    def is_class(folder: Path) -> bool:
        return (folder / "test").is_dir() or (folder / "train").is_dir()

    for folder in [root] if is_class(root) else filter(is_class, _groups(root, "class")):
        for group in _groups(folder / split, "defect"):
            yield from folder_samples(group, folder_name(folder), folder / "ground_truth" / group.name)


def read_folder(root: Path, split: str) -> Iterator[Sample]:
    groups = _groups(root, "defect")
    stores = [folder for folder in groups if folder.name in ("ground_truth", "masks")]
    for group in groups:
        if group not in stores:
            inner = [store / group.name for store in stores if (store / group.name).is_dir()]
            yield from folder_samples(group, "object", next(iter(inner or stores), None))


def read_yes_no(class_name: str, root: Path, split: str) -> Iterator[Sample]:
    yield from folder_samples(root / "no", class_name, defect="good")
    yield from folder_samples(root / "yes", class_name, defect="tumor")


def read_pairs(
    pairs: dict[str, tuple[tuple[str, str], ...]], class_name: str, defect: str, root: Path, split: str
) -> Iterable[Sample]:
    """Of the pairs of a split, the first that is there: a folder of pictures, all defective, and one of masks."""
    there = [pair for pair in pairs[split] if (root / pair[0]).is_dir()]
    images, masks = (_unwrapped(root / name) for name in (there or pairs[split])[0])
    return folder_samples(images, class_name, masks, defect)


def folder_samples(
    folder: Path, class_name: str, masks: Path | None = None, defect: str | None = None
) -> Iterator[Sample]:
    """The pictures of a folder, which names their defect unless `defect` does, with the masks named after them."""
    defect = defect or folder.name
    label = int(defect not in NORMAL)
    found = _by_stem(masks) if label and masks else {}
    for image in _pictures(folder):
        names = [f"{image.stem}{ending}".lower() for ending in MASK_ENDINGS]
        mask = next((found[name] for name in names if name in found), None)
        yield Sample(image, mask, class_name, defect if label else "good", label)


def _listed(
    root: Path, source: Path, image: object, mask: object, class_name: object, defect: str, label: object
) -> Sample:
    """The sample that an entry of the file `source` describes; its files are named relative to `root`."""
    path = _inside(root, source, image)
    if not isinstance(class_name, str) or not class_name.strip():
        raise DatasetError(f"{printable(source)}: {printable(path)} has no class")
    number = {"0": 0, "normal": 0, "1": 1, "anomaly": 1}.get(str(label).lower())
    if number is None:
        raise DatasetError(f"{printable(source)}: the label of {printable(path)} is {label!r}, neither 0 nor 1")
    if not number:
        return Sample(path, None, class_name, "good", 0)
    return Sample(path, _inside(root, source, mask) if mask else None, class_name, defect or "anomaly", 1)


def _inside(root: Path, source: Path, name: object) -> Path:
    """A file that `source` names. It must lie in `root`: a list from the network shall not open other files."""
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{printable(source)}: an entry with the file name {name!r}")
    base = os.path.abspath(root)
    target = os.path.abspath(os.path.join(base, name))
    if not Path(target).is_relative_to(base):
        raise DatasetError(f"{printable(source)}: {name!r} leads out of the folder {printable(root)}")
    path = root / os.path.relpath(target, base)
    if not path.is_file():
        raise DatasetError(f"{printable(path)}: no such file, but {printable(source)} names it")
    return path


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The lines of a CSV file with a header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not set(columns) <= set(reader.fieldnames or ()):
                raise DatasetError(f"{printable(path)}: the first line must name the columns {', '.join(columns)}")
            for row in reader:
                yield {column: (row[column] or "").strip() for column in columns}
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{printable(path)}: not a CSV file ({one_line(error)})") from None


def _unwrapped(folder: Path) -> Path:
    """`NAME/NAME` where an archive was unpacked into a folder of its own name."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _groups(folder: Path, kind: str) -> list[Path]:
    """The folders in a folder, in which no picture may lie outside of them and none may be empty."""
    for picture in _listing(folder):
        raise DatasetError(f"{printable(picture)}: this picture lies in no {kind} folder: move it into one")
    found = folders(folder)
    if not found:
        raise DatasetError(f"{printable(folder)}: no {kind} folder in it")
    for inner in found:
        if not any(inner.iterdir()):
            raise DatasetError(f"{printable(inner)}: this folder is empty")
    return found


def folders(folder: Path, pattern: str = "*") -> list[Path]:
    # Archives made on a Mac hold __MACOSX, and ._NAME beside each NAME.
    return sorted(path for path in folder.glob(pattern) if path.is_dir() and not path.name.startswith((".", "__")))


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that must have some."""
    found = _listing(folder)
    if not found:
        raise DatasetError(f"{printable(folder)}: no pictures in this folder")
    return found


def _listing(folder: Path) -> list[Path]:
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(path for path in paths if path.is_file())


def _by_stem(folder: Path) -> dict[str, Path]:
    """Pictures by their name in lower case without suffix; none if there is no such folder."""
    return {path.stem.lower(): path for path in _listing(folder)} if folder.is_dir() else {}


def folder_name(folder: Path) -> str:
    return os.path.basename(os.path.abspath(folder))  # "." has a name, too
