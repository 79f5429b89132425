"""Data sets on disk -> one list of samples: the fourteen of the paper in the folders in which they are distributed, the
`meta.json` of AdaCLIP and Tipsomaly, and a plain folder. `LAYOUTS`, at the end, shows what each looks like."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tipsomaly.data import readers
from tipsomaly.data.masks import check_sizes
from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError, printable


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

    >>> from PIL import Image
    >>> for folder in (Path("tiles/good"), Path("tiles/crack")):
    ...     folder.mkdir(parents=True)
    ...     Image.new("RGB", (28, 28)).save(folder / "000.png")
    >>> [(sample.defect, sample.label) for sample in read_dataset("tiles")]
    [('crack', 1), ('good', 0)]
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
            if layout or not hints or any(hint in readers.folder_name(folder).lower() for hint in hints):
                return name, folder
        if found:
            raise DatasetError(f"{printable(root)}: could be {', '.join(found)}, or something else: name the layout")
    trees = {known.tree: name for name, known in reversed(LAYOUTS.items()) if layout in (None, name)}
    looked_for = "; ".join(f"{name}: {tree}" for tree, name in reversed(trees.items()))
    raise DatasetError(f"{printable(root)}: no known layout; looked for {looked_for}")


def _wrapped(folder: Path) -> Iterator[Path]:
    """A folder, and those that lie alone in it: archives wrap a data set in a folder or two."""
    for _ in range(3):
        yield folder
        inner = readers.folders(folder)
        if len(inner) != 1:
            return
        folder = inner[0]


def _yes_no(class_name: str, *hints: str) -> Layout:
    return Layout("yes/, no/", (("yes/", "no/"),), partial(readers.read_yes_no, class_name), hints=hints)


def _polyps(class_name: str, *hints: str) -> Layout:
    folders = (("images", "masks"), ("Original", "Ground Truth"), ("PNG/Original", "PNG/Ground Truth"))
    return _pairs(class_name, "polyp", hints, test=folders)


def _pairs(class_name: str, defect: str, hints: tuple[str, ...] = (), **pairs: tuple[tuple[str, str], ...]) -> Layout:
    """Pictures in one folder, all defective, and their masks in another: `pairs` of these folders by split."""
    signs = tuple(pair for split in pairs.values() for pair in split)
    tree = " or ".join(f"{images}/ with {masks}/" for images, masks in signs)
    return Layout(tree, signs, partial(readers.read_pairs, pairs, class_name, defect), True, tuple(pairs), hints=hints)


_BOTH = ("test", "train")
_MVTEC = Layout(
    "CLASS/test/{good,DEFECT}/, CLASS/train/good/, CLASS/ground_truth/DEFECT/NAME_mask.png",
    (("test/*/",), ("*/test/*/",), ("train/*/",), ("*/train/*/",)),
    readers.read_mvtec,
    splits=_BOTH,
)
_ISIC = "ISBI2016_ISIC_Part1_"

LAYOUTS: dict[str, Layout] = {
    "meta": Layout(
        "meta.json with img_path, mask_path, cls_name, specie_name and anomaly",
        (("meta.json",),),
        readers.read_meta,
        splits=_BOTH,
        ordered=True,
    ),
    "visa": Layout(
        "split_csv/1cls.csv, CLASS/Data/{Images/{Normal,Anomaly},Masks/Anomaly}/, CLASS/image_anno.csv for the kinds",
        (("split_csv/1cls.csv",),),
        readers.read_visa,
        masks=True,
        splits=_BOTH,
    ),
    "dagm": Layout(
        "ClassN/{Test,Train}/NAME.PNG, ClassN/{Test,Train}/Label/NAME_label.PNG",
        (("Class*/Test/Label/",), ("Class*/Class*/Test/Label/",)),
        readers.read_dagm,
        masks=True,
        splits=_BOTH,
    ),
    "sdd": Layout("kosNN/PartN.jpg, kosNN/PartN_label.bmp", (("kos*/Part*",),), readers.read_sdd, masks=True),
    "btad": Layout(
        "CLASS/test/{ok,ko}/, CLASS/train/ok/, CLASS/ground_truth/ko/",
        (("*/test/ok/",), ("*/train/ok/",)),
        readers.read_mvtec,
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
    "headct": Layout(
        "labels.csv with id and hemorrhage, head_ct/NNN.png", (("labels.csv", "head_ct/"),), readers.read_headct
    ),
    "br35h": _yes_no("br35h", "br35"),
    "brainmri": _yes_no("brain_mri", "brain", "mri", "tumor"),
    "folder": Layout(
        "good/, any other folder for a defect, masks if there are some in ground_truth/DEFECT/ or masks/DEFECT/",
        (("good/",),),
        readers.read_folder,
    ),
}
"""Every layout by name, in the order in which they are tried. A plain folder holds pictures of the class "object". The
medical data sets, of one class each, are called what their classes are in the authors' code."""
