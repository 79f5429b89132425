"""The bundled pictures, known by what is in them: an upload of one is the same picture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tipsomaly.files import sha256

OPENING = "concrete-defect.jpg"
"""The page opens on it: a defect that nano finds. What it makes of an example is said beside each."""


@dataclass(frozen=True)
class Example:
    """A bundled picture."""

    picture: Path
    mask: Path | None
    """Where it is defective; None of a good one."""
    class_name: str
    domain: str
    caption: str


class Examples:
    """Those of a folder with an examples.json, pairs of a good picture and its defective twin."""

    def __init__(self, folder: Path) -> None:
        entries = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
        self.all = [
            Example(
                folder / entry["picture"],
                folder / entry["mask"] if entry["mask"] else None,
                *(entry[key] for key in ("class_name", "domain", "caption")),
            )
            for entry in entries
        ]
        self._known: Mapping[str, Example] = {sha256(each.picture.read_bytes()): each for each in self.all}

    @property
    def opening(self) -> Example:
        """The one that the page opens on."""
        return next(example for example in self.all if example.picture.name == OPENING)

    def find(self, picture: object) -> Example | None:
        """The example that a file is, whatever its name; None of whatever is no path."""
        try:
            return self._known.get(sha256(Path(picture).read_bytes())) if isinstance(picture, str | Path) else None
        except OSError:  # whoever reads it next says so
            return None

    def twin(self, example: Example) -> Example:
        """The good one of an example's pair."""
        return next(each for each in self.all if each.mask is None and each.class_name == example.class_name)

    def goods(self, without: Example | None = None) -> list[Path]:
        """The good pictures, less those of one example's class: neither it nor its twin says what is normal for it."""
        return [
            example.picture
            for example in self.all
            if example.mask is None and (without is None or example.class_name != without.class_name)
        ]
