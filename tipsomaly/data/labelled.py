"""A labelled data set of Hugging Face as a folder that `read_dataset` reads."""

from pathlib import Path
from typing import Any

from tipsomaly.data.hugging_face import HubDataset
from tipsomaly.data.readers import NORMAL
from tipsomaly.errors import DatasetError, FetchError, ImageError, explained
from tipsomaly.files import only_writer, to_json, write_atomically

LABELS = ("label", "anomaly", "is_anomaly", "is_anomalous", "anomalous", "defect", "is_defective", "defective")
"""The first of these columns says what is wrong with a picture: a number or a truth value, 0 for nothing, or a name."""
NORMALS = NORMAL | {"normal", "no", "none", "negative", "false", "0", ""}
"""Names for nothing."""
CLASSES = ("class_name", "category", "object", "product")
"""The first of these columns is what is on a picture; "object" where there is none."""


def save_labelled(data: HubDataset, folder: Path) -> Path:
    """Write the pictures of a split, their masks and a meta.json into a folder, and return it. What is there already
    and the same is not written again, so that what was computed from it stays valid.

    Raises DatasetError where it is not said which pictures are defective, or where a picture or its label is missing,
    FetchError where the data set cannot be read to its end.
    """
    label, group = (next((name for name in names if name in data.features), None) for names in (LABELS, CLASSES))
    if label is None:
        raise DatasetError(f"{data.name}: no column says what is defective; looked for {', '.join(LABELS)}")
    names = getattr(data.features[label], "names", None)
    if names and not any(_is_normal(name) for name in names):
        raise DatasetError(f"{data.name}: {label} is one of {', '.join(names)[:200]}: which is normal is not said")
    pictures = {"images": data.column} | ({"masks": data.masks} if data.masks else {})
    classes: dict[str, list[dict[str, object]]] = {}
    with only_writer(folder), explained(data.name, FetchError):
        for number, row in enumerate(
            data.rows.select_columns([*pictures.values(), label, *([group] if group else [])])
        ):
            try:
                defect = _defect(names, row[label])
                entry: dict[str, object] = {"anomaly": int(defect != "good"), "specie_name": defect, "mask_path": None}
                entry["cls_name"] = class_name = _word(data.features[group], row[group]) if group else "object"
                for part, column in pictures.items():
                    if part == "images" or (defect != "good" and row[column]):
                        name = f"{part}/{number:06}.png"  # of whatever format it is: readers look into it
                        _keep(folder / name, data.content(row[column] or {}))
                        entry["img_path" if part == "images" else "mask_path"] = name
            except ImageError as error:
                raise DatasetError(f"{data.name}: row {number}: {error}") from None
            classes.setdefault(class_name, []).append(entry)
        write_atomically(folder / "meta.json", to_json({"train": {}, "test": classes}))
    return folder


def _defect(names: list[str] | None, value: Any) -> str:
    """What is wrong by a label, "good" for nothing."""
    if value is None or (not isinstance(value, str) and value < 0):  # what is held back on the Hub is -1
        raise ImageError("it has no label")
    word = names[value] if names else value
    if isinstance(word, str):
        return "good" if _is_normal(word) else word
    return "anomaly" if word else "good"


def _is_normal(word: str) -> bool:
    return word.strip().lower() in NORMALS


def _word(kind: Any, value: Any) -> str:
    return str(kind.names[value] if getattr(kind, "names", None) else value)


def _keep(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
