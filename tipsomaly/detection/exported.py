"""An exported detector: one graph in onnxruntime or OpenVINO instead of the towers, for the classes that it was made
for."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tipsomaly.data.images import ImageSource
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.engine import Engine, check_batch_size
from tipsomaly.detection.result import Result
from tipsomaly.detection.views import Scores, View, Viewer
from tipsomaly.errors import ImageError, ModelError, OptionError, explained, short
from tipsomaly.files import expand, is_file
from tipsomaly.models.sessions import GRAPHS, Session, open_session
from tipsomaly.names import clean_class_name

RECORD = "export.json"
"""By this file a folder is known as an export."""
VERSION = 1


class ExportEngine(Engine):
    """A graph in the place of the tower and its detectors; a detector is the number of a class here."""

    device = torch.device("cpu")
    min_area = 0

    def __init__(self, session: Session, viewer: Viewer, sigma: float, kinds: bool, top: float | None) -> None:
        self.session, self.viewer, self.sigma, self.top = session, viewer, sigma, top
        self.outputs = ("object_score", "global_score", "patch_map", "spatial", *(["kind_map"] if kinds else []))

    def _launch(self, batch: Sequence[View | ImageError], detectors: Sequence[Any], maps: bool) -> None:
        views = [view for view in batch if not isinstance(view, ImageError)]
        if not views:
            return
        pixels = np.stack([view.pixels.permute(1, 2, 0).numpy() for view in views])
        for class_index in detectors:
            index = np.full(len(views), class_index, np.int64)
            found = self.session.run(self.outputs, {"images": pixels, "class_index": index})
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in found.items()}
            images = torch.stack([tensors["object_score"], tensors["global_score"]], dim=1)
            spatial = torch.nn.functional.normalize(tensors["spatial"], dim=-1)
            for i, view in enumerate(views):
                kinds = tensors["kind_map"][i].half() if "kind_map" in tensors else None
                scores = Scores(spatial[i], images[i], tensors["patch_map"][i], kinds=kinds)
                view.picture.scores.setdefault(view.index, []).append(scores)


class Exported:
    """What `Pipeline` does with pictures, from a folder of `tipsomaly export`: no towers, no tokenizer. Safe to call
    from several threads at once."""

    min_area = 0
    """All regions of a map count."""

    prompts = None

    def __init__(
        self,
        folder: str | Path,
        calibration: Calibration | str | Path | None = None,
        *,
        engine: str | None = None,
        threads: int | None = None,
    ) -> None:
        """`calibration` takes the place of the one that was exported. `engine`, "onnx" or "openvino", is what runs it;
        by default what it was exported for. Raises ModelError, in one line, for a folder that is damaged or of a later
        version, and OptionError where its engine is not installed."""
        self.folder = expand(folder)
        self.record = record = read_record(self.folder)
        graph = self.folder / GRAPHS[record["format"]]
        if graph_digest(self.folder, record["format"]) != record["digest"]:
            raise ModelError(f"{graph}: not the file that was exported (its SHA-256 is another)")
        self.session = open_session(graph, engine or record["format"], record["precision"], threads)
        with explained(f"{graph}: not an exported graph"):
            inside = json.loads(self.session.metadata)
            if inside != {name: value for name, value in record.items() if name != "digest"}:
                raise ValueError(f"what it holds is not what {RECORD} says")
        self.class_names: list[str] = record["class_names"]
        settings = record["settings"]
        viewer = Viewer(tuple(settings["image_size"]), record["patch_size"], None, False)
        self.engine = ExportEngine(self.session, viewer, settings["sigma"], bool(record["kinds"]), settings.get("top"))
        if isinstance(calibration, str | Path):
            calibration = Calibration.load(calibration)
        if calibration:
            calibration.check(self.settings())
        elif record["calibration"]:
            calibration = Calibration(**record["calibration"])
        self.calibration = calibration

    def settings(self) -> dict[str, Any]:
        """Those of the pipeline that was exported: its calibrations fit."""
        return dict(self.record["settings"])

    def check(self, device: Any = "auto", dtype: Any = "auto", **options: Any) -> None:
        """Raise OptionError for an option, as `Pipeline.from_pretrained` takes it, that differs from what was
        exported."""
        fixed = self.settings()
        tiling = fixed["tiling"] or [None, None]
        known = {**fixed, "tile": tiling[0], "overlap": tiling[1], "prompts": None, "evidence": None}
        known |= {"device": "cpu", "reference_options": None}
        given = {"device": None if device == "auto" else str(device), **options}
        given["dtype"] = None if dtype in ("auto", "fastest") else str(dtype).removeprefix("torch.")
        for name, value in given.items():
            value = [value, value] if name == "image_size" and isinstance(value, int) else value
            value = list(value) if isinstance(value, tuple) else value
            if value is not None and value is not False and value != known.get(name):
                raise OptionError(f"this export has {name} {short(known.get(name))}, not {short(value)}: export again")

    def references(self, class_name: str = "object") -> None:
        """An export has no normal pictures: None."""

    def compile(self, batch_size: int = 16, backend: str = "") -> float:
        """An export is compiled already: OptionError."""
        raise OptionError("an export is compiled already: leave out --compile")

    def __call__(
        self, images: ImageSource | list[ImageSource], class_name: str | None = None, batch_size: int = 16
    ) -> Result | list[Result]:
        """See `Pipeline`."""
        if isinstance(images, list | tuple):
            return list(self.stream(images, class_name, batch_size=batch_size))  # type: ignore[arg-type]
        return next(self.stream([images], class_name))  # type: ignore[return-value]

    def stream(
        self,
        images: Iterable[ImageSource],
        class_name: str | None = None,
        *,
        batch_size: int = 16,
        errors: Literal["raise", "yield"] = "raise",
        maps: bool = False,
        together: bool = False,
    ) -> Iterator[Result | ImageError]:
        """See `Pipeline.stream`; without a class name it is the first of those that were exported. `maps` changes
        nothing: they are made when they are asked for."""
        check_batch_size(batch_size)
        if together:
            raise OptionError("an export compares no pictures with each other")
        if errors not in ("raise", "yield"):
            raise OptionError(f"errors must be 'raise' or 'yield', not {errors!r}")
        name = self.class_names[0] if class_name is None else clean_class_name(class_name)
        if name not in self.class_names:
            raise ModelError(f"this export is for {', '.join(map(repr, self.class_names))}, not {name!r}")
        if self.calibration and self.calibration.class_name != name:
            raise ModelError(f"this calibration was made for the class {self.calibration.class_name!r}, not {name!r}")
        return self._stream(images, name, batch_size, errors)

    def _stream(
        self, images: Iterable[ImageSource], name: str, batch_size: int, errors: str
    ) -> Iterator[Result | ImageError]:
        record, options = self.record, (self.record["settings"]["mode"], self.calibration)
        for view in self.engine.scored(images, [self.class_names.index(name)], batch_size):  # type: ignore[list-item]
            if not isinstance(view, ImageError):
                kinds = tuple(record["kinds"])
                yield self.engine.result(view.picture, 0, name, *options, record["image_score"], kinds)
            elif errors == "raise":
                raise view
            else:
                yield view


def is_export(folder: str | Path) -> bool:
    """Whether a name is that of an exported folder."""
    return is_file(expand(folder) / RECORD)


def read_record(folder: Path) -> dict[str, Any]:
    """What an export says of itself. Raises ModelError for a file that is something else."""
    path = folder / RECORD
    with explained(f"{path}: not the record of an export"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != VERSION:
            raise ModelError(f"{path}: of version {record['version']}, this package reads {VERSION}")
        kinds = {"format": str, "precision": str, "class_names": list, "settings": dict, "patch_size": int}
        for name, kind in (kinds | {"digest": str, "image_score": dict, "kinds": list}).items():
            if not isinstance(record[name], kind):
                raise ValueError(f"{name} is no {kind.__name__}")
        _ = GRAPHS[record["format"]], record["calibration"], record["settings"]["mode"]
        names, size = record["class_names"], record["settings"]["image_size"]
        if not names or not all(isinstance(name, str) for name in names + record["kinds"]):
            raise ValueError("class names must be texts")
        numbers = [*size, record["settings"]["sigma"], *record["image_score"].values()]
        if len(size) != 2 or not all(type(number) in (int, float) and number >= 0 for number in numbers):
            raise ValueError("a size or a weight is no number")
        top = record["settings"].get("top")
        if top is not None and not (type(top) in (int, float) and 0 < top <= 1):
            raise ValueError("top is no share")
        if record["calibration"] is not None:
            Calibration(**record["calibration"])
        return record


def graph_digest(folder: Path, form: str) -> str:
    """Hexadecimal SHA-256 of the graph's files, one after the other."""
    sha = hashlib.sha256()
    first = folder / GRAPHS[form]
    others = [path for path in (first.with_name("model.onnx.data"), first.with_suffix(".bin")) if path.is_file()]
    for path in (first, *others):
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()
