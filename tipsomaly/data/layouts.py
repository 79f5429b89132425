"""Data sets on disk -> one list of samples: the fourteen of the paper in the folders in which they are distributed, the
`meta.json` of AdaCLIP and Tipsomaly, and a plain folder. `LAYOUTS`, at the end, shows what each looks like."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tipsomaly.data.images import MAX_PIXELS, SUFFIXES
from tipsomaly.data.masks import check_sizes, mask_pixels
from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError, one_line, printable

NORMAL = frozenset(("good", "ok"))
"""Folders of normal pictures; any other folder is named after a defect."""

MASK_ENDINGS = ("_mask", "", "_label", "_segmentation")
"""A mask has the name of its picture and one of these, and any suffix."""


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk."""

    tree: str
    """What it looks like, for people."""
    signs: tuple[tuple[str, ...], ...]
    """Glob patterns: all of one of these tuples must match."""
    read: Callable[[Path, str], Iterable[Sample]]
    """The samples of a folder and a split. A mask that is not there is None: read_dataset says what that means."""
    masks: bool = False
    """Every defective picture has a mask. Otherwise either all have one or none has."""
    splits: tuple[str, ...] = ("test",)
    ordered: bool = False
    """Its own order is kept."""
    hints: tuple[str, ...] = ()
    """Other data looks like this, too: only in a folder with one of these in its name it is recognised by itself."""

    def fits(self, folder: Path) -> bool:
        """Whether the folder shows the signs of this layout."""
        return any(all(next(folder.glob(sign), None) for sign in signs) for signs in self.signs)


def read_dataset(
    root: str | Path, layout: str | None = None, split: str = "test", classes: Sequence[str] | None = None
) -> list[Sample]:
    """The samples of a data set, sorted by class and path; those of a meta.json in its order, which the
    paper's authors train in.

    layout: a key of LAYOUTS; recognised by itself if not given. The data set may lie alone in a folder in `root`.
    split: "test", on which the paper also trains prompts (for other data sets: it has defects), or "train".
    classes: only these, by the names that they have in the data set; all if none is given.

    Raises DatasetError, in one line, for what is missing, empty or contradictory: before anything is scored.
    """
    try:
        name, folder = find_layout(root, layout)
        known = LAYOUTS[name]
        if split not in known.splits:
            splits = " and ".join(known.splits)
            raise DatasetError(f"{printable(root)}: the layout {name} has no split {split!r}, only {splits}")
        samples = list(known.read(folder, split))
        if not known.ordered:
            samples.sort(key=lambda sample: (sample.class_name, sample.image.as_posix()))
    except OSError as error:
        raise DatasetError(f"{printable(error.filename or root)}: {error.strerror or error}") from None
    if not samples:
        raise DatasetError(f"{printable(folder)}: no pictures in the split {split!r}")
    has_masks = known.masks or any(sample.mask for sample in samples)
    if classes:
        wanted = {classes} if isinstance(classes, str) else set(classes)
        names = sorted({sample.class_name for sample in samples})
        if not wanted <= set(names):
            unknown = ", ".join(sorted(wanted - set(names)))
            raise DatasetError(f"{printable(folder)}: no class {unknown}: this data set has {', '.join(names)}")
        samples = [sample for sample in samples if sample.class_name in wanted]
    for name in dict.fromkeys(sample.class_name for sample in samples):
        if not name.strip("_- "):
            raise DatasetError(f"{folder}: the class {name!r} has no word that a prompt could say")
    for sample in samples:
        if sample.mask:
            check_sizes(sample.image, sample.mask)
        elif sample.label and has_masks:
            raise DatasetError(f"{printable(sample.image)}: defective, but without a mask; expected: {known.tree}")
    return samples


def find_layout(root: str | Path, layout: str | None = None) -> tuple[str, Path]:
    """The name of a data set's layout and the folder that has it: `root`, or one that lies alone in it.

    With `layout` only that one is looked for. Raises DatasetError when there is none, or when it must be named.
    """
    root = Path(root)
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"unknown layout {layout!r}: choose {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise DatasetError(f"{printable(root)}: {'not a folder' if root.exists() else 'no such folder'}")
    for folder in _wrapped(root):
        found = [name for name, known in LAYOUTS.items() if layout in (None, name) and known.fits(folder)]
        for name in found:
            hints = LAYOUTS[name].hints
            if layout or not hints or any(hint in _name(folder).lower() for hint in hints):
                return name, folder
        if found:
            raise DatasetError(f"{printable(root)}: could be {', '.join(found)}, or something else: name the layout")
    trees = {known.tree: name for name, known in reversed(LAYOUTS.items()) if layout in (None, name)}
    looked_for = "; ".join(f"{name}: {tree}" for tree, name in reversed(trees.items()))
    raise DatasetError(f"{printable(root)}: no known layout; looked for {looked_for}")


def _read_meta(root: Path, split: str) -> Iterator[Sample]:
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


def _read_visa(root: Path, split: str) -> Iterator[Sample]:
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


def _read_headct(root: Path, split: str) -> Iterator[Sample]:
    path, folder = root / "labels.csv", _unwrapped(root / "head_ct")
    for row in _rows(path, ("id", "hemorrhage")):
        yield _listed(folder, path, f"{row['id']:0>3}.png", None, "headct", "hemorrhage", row["hemorrhage"])


def _read_dagm(root: Path, split: str) -> Iterator[Sample]:
    for outer in _folders(root, "Class*"):
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


def _read_sdd(root: Path, split: str) -> Iterator[Sample]:
    for folder in _folders(root, "kos*"):
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


def _read_mvtec(root: Path, split: str) -> Iterator[Sample]:
    def is_class(folder: Path) -> bool:
        return (folder / "test").is_dir() or (folder / "train").is_dir()

    for folder in [root] if is_class(root) else filter(is_class, _groups(root, "class")):
        for group in _groups(folder / split, "defect"):
            yield from _samples(group, _name(folder), folder / "ground_truth" / group.name)


def _read_folder(root: Path, split: str) -> Iterator[Sample]:
    groups = _groups(root, "defect")
    stores = [folder for folder in groups if folder.name in ("ground_truth", "masks")]
    for group in groups:
        if group not in stores:
            inner = [store / group.name for store in stores if (store / group.name).is_dir()]
            yield from _samples(group, "object", next(iter(inner or stores), None))


def _read_yes_no(class_name: str, root: Path, split: str) -> Iterator[Sample]:
    yield from _samples(root / "no", class_name, defect="good")
    yield from _samples(root / "yes", class_name, defect="tumor")


def _read_pairs(
    pairs: dict[str, tuple[tuple[str, str], ...]], class_name: str, defect: str, root: Path, split: str
) -> Iterable[Sample]:
    """Of the pairs of a split, the first that is there: a folder of pictures, all defective, and one of masks."""
    there = [pair for pair in pairs[split] if (root / pair[0]).is_dir()]
    images, masks = (_unwrapped(root / name) for name in (there or pairs[split])[0])
    return _samples(images, class_name, masks, defect)


def _samples(folder: Path, class_name: str, masks: Path | None = None, defect: str | None = None) -> Iterator[Sample]:
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


def _wrapped(folder: Path) -> Iterator[Path]:
    """A folder, and those that lie alone in it: archives wrap a data set in a folder or two."""
    for _ in range(3):
        yield folder
        inner = _folders(folder)
        if len(inner) != 1:
            return
        folder = inner[0]


def _unwrapped(folder: Path) -> Path:
    """`NAME/NAME` where an archive was unpacked into a folder of its own name."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _groups(folder: Path, kind: str) -> list[Path]:
    """The folders in a folder, in which no picture may lie outside of them and none may be empty."""
    for picture in _listing(folder):
        raise DatasetError(f"{printable(picture)}: this picture lies in no {kind} folder: move it into one")
    found = _folders(folder)
    if not found:
        raise DatasetError(f"{printable(folder)}: no {kind} folder in it")
    for inner in found:
        if not any(inner.iterdir()):
            raise DatasetError(f"{printable(inner)}: this folder is empty")
    return found


def _folders(folder: Path, pattern: str = "*") -> list[Path]:
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


def _name(folder: Path) -> str:
    return os.path.basename(os.path.abspath(folder))  # "." has a name, too


def _yes_no(class_name: str, *hints: str) -> Layout:
    return Layout("yes/, no/", (("yes/", "no/"),), partial(_read_yes_no, class_name), hints=hints)


def _polyps(class_name: str, *hints: str) -> Layout:
    folders = (("images", "masks"), ("Original", "Ground Truth"), ("PNG/Original", "PNG/Ground Truth"))
    return _pairs(class_name, "polyp", hints, test=folders)


def _pairs(class_name: str, defect: str, hints: tuple[str, ...] = (), **pairs: tuple[tuple[str, str], ...]) -> Layout:
    """Pictures in one folder, all defective, and their masks in another: `pairs` of these folders by split."""
    signs = tuple(pair for split in pairs.values() for pair in split)
    tree = " or ".join(f"{images}/ with {masks}/" for images, masks in signs)
    return Layout(tree, signs, partial(_read_pairs, pairs, class_name, defect), True, tuple(pairs), hints=hints)


_BOTH = ("test", "train")
_MVTEC = Layout(
    "CLASS/test/{good,DEFECT}/, CLASS/train/good/, CLASS/ground_truth/DEFECT/NAME_mask.png",
    (("test/*/",), ("*/test/*/",), ("train/*/",), ("*/train/*/",)),
    _read_mvtec,
    splits=_BOTH,
)
_ISIC = "ISBI2016_ISIC_Part1_"

LAYOUTS: dict[str, Layout] = {
    "meta": Layout(
        "meta.json with img_path, mask_path, cls_name, specie_name and anomaly",
        (("meta.json",),),
        _read_meta,
        splits=_BOTH,
        ordered=True,
    ),
    "visa": Layout(
        "split_csv/1cls.csv, CLASS/Data/{Images/{Normal,Anomaly},Masks/Anomaly}/, CLASS/image_anno.csv for the kinds",
        (("split_csv/1cls.csv",),),
        _read_visa,
        masks=True,
        splits=_BOTH,
    ),
    "dagm": Layout(
        "ClassN/{Test,Train}/NAME.PNG, ClassN/{Test,Train}/Label/NAME_label.PNG",
        (("Class*/Test/Label/",), ("Class*/Class*/Test/Label/",)),
        _read_dagm,
        masks=True,
        splits=_BOTH,
    ),
    "sdd": Layout("kosNN/PartN.jpg, kosNN/PartN_label.bmp", (("kos*/Part*",),), _read_sdd, masks=True),
    "btad": Layout(
        "CLASS/test/{ok,ko}/, CLASS/train/ok/, CLASS/ground_truth/ko/",
        (("*/test/ok/",), ("*/train/ok/",)),
        _read_mvtec,
        masks=True,
        splits=_BOTH,
    ),
    "mvtec": _MVTEC,
    "mpdd": _MVTEC,
    "dtd": _MVTEC,
    "isic": _pairs(
        "isic",
        "lesion",
        test=((f"{_ISIC}Test_Data", f"{_ISIC}Test_GroundTruth"),),
        train=((f"{_ISIC}Training_Data", f"{_ISIC}Training_GroundTruth"),),
    ),
    "tn3k": _pairs("tn3k", "nodule", test=(("test-image", "test-mask"),), train=(("trainval-image", "trainval-mask"),)),
    "colondb": _polyps("colon", "colon"),
    "clinicdb": _polyps("ClinicDB", "clinic"),
    "headct": Layout("labels.csv with id and hemorrhage, head_ct/NNN.png", (("labels.csv", "head_ct/"),), _read_headct),
    "br35h": _yes_no("br35h", "br35"),
    "brainmri": _yes_no("brain_mri", "brain", "mri", "tumor"),
    "folder": Layout(
        "good/, any other folder for a defect, masks if there are some in ground_truth/DEFECT/ or masks/DEFECT/",
        (("good/",),),
        _read_folder,
    ),
}
"""Every layout by name, in the order in which they are tried. A plain folder holds pictures of the class "object". The
medical data sets, of one class each, are called what their classes are in the authors' code."""
