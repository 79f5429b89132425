"""Results as other tools read them: COCO, YOLO, Label Studio, CSV, and one HTML file for people.

Each format is a class with `add`, which is given the pictures one by one, and `close`, which completes its files. What
counts as a region is what reaches the calibrated threshold, 0.5 where there is no calibration. Coordinates are those of
the upright picture: readers must apply EXIF orientation, as browsers and OpenCV do.
"""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TextIO

import numpy as np

from tipsomaly.data.images import SUFFIXES
from tipsomaly.detection.outlines import compressed, polygons, run_lengths
from tipsomaly.detection.report import Report
from tipsomaly.detection.result import Region, Result
from tipsomaly.files import to_json, whole_file, write_atomically


class Format(AbstractContextManager, Protocol):
    """Where results go; a context manager that closes itself."""

    def add(self, image: str, result: Result, stem: str) -> None:
        """Take a result. `image` is the picture's path or name, `stem` a file name that no other picture of the run
        has."""

    def fail(self, image: str, error: str) -> None:
        """Take a picture that could not be used."""

    def close(self) -> None:
        """Complete the files, also after an interrupt."""


class _Closing(AbstractContextManager):
    """What the formats have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fail(self, image: str, error: str) -> None:
        """Nothing is said of a picture that could not be used."""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Coco(_Closing):
    """`coco.json`: pictures, and a polygon and a box for each region, as annotations that CVAT, FiftyOne and others
    import. `coco_results.json`: the same as detections with scores and exact masks (RLE), for pycocotools' `loadRes`.

    File names are relative to the folder that `info` names: `root`, by default the innermost one that holds all
    pictures.
    """

    def __init__(self, folder: Path, root: str | None = None) -> None:
        super().__init__(folder)
        self.root = root
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.categories: dict[str, int] = {}

    def add(self, image: str, result: Result, stem: str) -> None:
        number = len(self.images) + 1
        entry = {"id": number, "file_name": image, "width": result.width, "height": result.height}
        self.images.append(entry | {"class_name": result.class_name, "score": result.score})
        if result.is_anomalous is not None:
            self.images[-1]["is_anomalous"] = result.is_anomalous
        for region, inside in found(result):
            left, top, right, bottom = region.box
            whole = np.zeros((result.height, result.width), bool)
            whole[top:bottom, left:right] = inside
            common = {
                "image_id": number,
                "category_id": self.categories.setdefault(name(region), len(self.categories) + 1),
                "bbox": [left, top, right - left, bottom - top],
                "score": region.peak,
            }
            segmentation = [polygon.ravel().tolist() for polygon in outline(region, inside)]
            more = {"id": len(self.annotations) + 1, "area": region.area, "segmentation": segmentation, "iscrowd": 0}
            self.annotations.append(common | more)
            rle = {"size": [result.height, result.width], "counts": compressed(run_lengths(whole))}
            self.results.append(common | {"segmentation": rle})

    def close(self) -> None:
        root = common_folder([image["file_name"] for image in self.images]) if self.root is None else self.root
        for image in self.images:
            image["file_name"] = relative(image["file_name"], root)
        categories = [{"id": i, "name": kind, "supercategory": "anomaly"} for kind, i in self.categories.items()]
        content = {
            "info": {"description": "Anomalies found by Tipsomaly", "folder": root},
            "images": self.images,
            "categories": categories or [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}],
            "annotations": self.annotations,
        }
        write_atomically(self.folder / "coco.json", to_json(content))
        write_atomically(self.folder / "coco_results.json", to_json(self.results))


class Yolo(_Closing):
    """`yolo/`: a data set for segmentation as Ultralytics and Label Studio's converter read it: `data.yaml`,
    `classes.txt`, `images/`, which are links to the pictures or copies, and `labels/`, a polygon a line. `boxes/` has a
    box a line with its score. Numbers are shares of the picture's sides."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "yolo")
        self.names: dict[str, int] = {}
        for part in ("images", "labels", "boxes"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)

    def add(self, image: str, result: Result, stem: str) -> None:
        self._picture(result, stem)
        size = np.array([result.width, result.height])
        segments, boxes = [], []
        for region, inside in found(result):
            kind = self.names.setdefault(name(region), len(self.names))
            for polygon in outline(region, inside):
                segments.append(f"{kind} " + " ".join(f"{x:.6f} {y:.6f}" for x, y in polygon / size))
            box = np.array(region.box, float).reshape(2, 2) / size
            numbers = (*box.mean(0), *(box[1] - box[0]), region.peak)
            boxes.append(f"{kind} " + " ".join(f"{x:.6f}" for x in numbers))
        for part, lines in (("labels", segments), ("boxes", boxes)):
            write_atomically(self.folder / part / f"{stem}.txt", "".join(f"{line}\n" for line in lines))

    def _picture(self, result: Result, stem: str) -> None:
        source = result.source
        if not isinstance(source, str | Path):
            with whole_file(self.folder / "images" / f"{stem}.png") as file:
                result.image.save(file, "PNG")
            return
        suffix = Path(source).suffix if Path(source).suffix.lower() in SUFFIXES else ".png"
        target = self.folder / "images" / f"{stem}{suffix}"
        target.unlink(missing_ok=True)
        try:
            os.link(Path(source).resolve(), target)
        except OSError:  # another disk, or one without links
            with Path(source).open("rb") as file, whole_file(target) as copy:
                shutil.copyfileobj(file, copy)

    def close(self) -> None:
        names = list(self.names) or ["anomaly"]
        lines = ["path: .", "train: images", "val: images", "names:"]
        lines += [f"  {i}: {json.dumps(kind)}" for i, kind in enumerate(names)]
        write_atomically(self.folder / "data.yaml", "".join(f"{line}\n" for line in lines))
        write_atomically(self.folder / "classes.txt", "".join(f"{kind}\n" for kind in names))


class LabelStudio(_Closing):
    """`labelstudio.json`: tasks with a polygon and a box for each region as predictions, for a project with the
    labelling interface of `labelstudio.xml`. Pictures are named as Label Studio serves files of its own machine: start
    it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tasks: list[dict[str, Any]] = []
        self.names: dict[str, None] = {}

    def add(self, image: str, result: Result, stem: str) -> None:
        place = {"original_width": result.width, "original_height": result.height, "image_rotation": 0}
        size, number = np.array([result.width, result.height]) / 100, count()
        shapes: list[dict[str, Any]] = []
        for region, inside in found(result):
            kind = name(region)
            self.names[kind] = None
            left, top, right, bottom = region.box
            corners = {"x": left, "width": right - left}, {"y": top, "height": bottom - top}
            box = {key: value / size[i] for i, sides in enumerate(corners) for key, value in sides.items()}
            values = [("box", "rectanglelabels", box | {"rotation": 0})]
            for polygon in outline(region, inside):
                values.append(("outline", "polygonlabels", {"points": (polygon / size).tolist(), "closed": True}))
            for control, form, value in values:
                shape = {"id": f"r{next(number)}", "from_name": control, "to_name": "image", "type": form}
                shapes.append(shape | place | {"value": value | {form: [kind]}, "score": region.peak})
        url = "/data/local-files/?d=" + Path(image).absolute().as_posix().lstrip("/")
        data = {"image": url, "class_name": result.class_name, "score": result.score}
        prediction = {"model_version": "tipsomaly", "score": result.score, "result": shapes}
        self.tasks.append({"data": data, "predictions": [prediction]})

    def close(self) -> None:
        import xml.etree.ElementTree as ET

        view = ET.Element("View")
        ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
        for control, tag in (("outline", "PolygonLabels"), ("box", "RectangleLabels")):
            labels = ET.SubElement(view, tag, name=control, toName="image")
            for kind in self.names or ["anomaly"]:
                ET.SubElement(labels, "Label", value=kind)
        ET.indent(view)
        write_atomically(self.folder / "labelstudio.json", to_json(self.tasks))
        write_atomically(self.folder / "labelstudio.xml", ET.tostring(view, encoding="unicode") + "\n")


class Csv(_Closing):
    """`pictures.csv`, a picture a row, and `regions.csv`, a region a row; written as it goes."""

    PICTURES: ClassVar = ["image", "class_name", "score", "global_score", "local_score", "is_anomalous", "regions"]
    PICTURES += ["width", "height", "note", "error"]
    REGIONS: ClassVar = ["image", "kind", "left", "top", "right", "bottom", "area", "peak"]

    def __init__(self, folder: Path, known: Container[str] = ()) -> None:
        """Of tables that are there the rows of the pictures in `known` stay."""
        super().__init__(folder)
        self.files: list[TextIO] = []
        for name, header in (("pictures", self.PICTURES), ("regions", self.REGIONS)):
            path, table = folder / f"{name}.csv", io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([header, *_rows(path, header, known)])
            write_atomically(path, table.getvalue())
            self.files.append(path.open("a", encoding="utf-8", newline=""))
        self.pictures = csv.DictWriter(self.files[0], self.PICTURES, restval="", lineterminator="\n")
        self.regions = csv.writer(self.files[1], lineterminator="\n")

    def add(self, image: str, result: Result, stem: str) -> None:
        regions = [region for region, _ in found(result)]
        record = {key: value for key, value in result.record().items() if key in self.PICTURES}
        record |= {"image": image, "class_name": result.class_name, "regions": len(regions)}
        self.pictures.writerow(record)
        self.regions.writerows([image, name(region), *region.box, region.area, region.peak] for region in regions)
        for file in self.files:
            file.flush()

    def fail(self, image: str, error: str) -> None:
        self.pictures.writerow({"image": image, "error": error})

    def close(self) -> None:
        for file in self.files:
            file.close()


def _rows(path: Path, header: list[str], known: Container[str]) -> list[list[str]]:
    """The rows of a table of ours, if it is one, of the pictures in `known`; half a row is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        return []
    return [row for row in rows[1:] if len(row) == len(header) and row[0] in known] if rows[:1] == [header] else []


FORMATS: Mapping[str, Callable[[Path], Format]] = {
    "coco": Coco,
    "yolo": Yolo,
    "labelstudio": LabelStudio,
    "csv": Csv,
    "html": Report,
}
"""By the name of `--format`; each is made with the folder of the results."""


UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
"""Characters of a file's name that not every system takes."""


class Stems:
    """A file-name stem for each picture, unique within a run: pictures of one name come from several folders. `used`
    are those that other files have."""

    def __init__(self, used: Iterable[str] = ()) -> None:
        self.used = {stem.lower(): 1 for stem in used}  # and the last number that was put after each

    def __call__(self, source: str | Path) -> str:
        # Room for the endings we add; what is not UTF-8 in a name is left out, what Windows does not take replaced.
        plain = UNSAFE.sub("_", Path(source).stem)
        stem = base = plain.encode(errors="ignore")[:200].decode(errors="ignore") or "image"
        number = self.used.get(base.lower(), 1)
        while stem.lower() in self.used:
            number += 1
            stem = f"{base}_{number}"
        self.used[base.lower()] = number
        self.used[stem.lower()] = 1
        return stem


def found(result: Result) -> Iterator[tuple[Region, np.ndarray]]:
    """The regions above the calibrated threshold, or 0.5, highest peak first, each with what it is of its box: bool
    (bottom - top, right - left)."""
    return result.cutouts(0.5 if result.pixel_threshold is None else result.pixel_threshold)


def name(region: Region) -> str:
    """What a region is labelled as."""
    return "anomaly"


def outline(region: Region, inside: np.ndarray) -> list[np.ndarray]:
    """Its polygon in pixels of the picture, (n, 2) of x, y: one, as what touches at a corner is one region."""
    return [polygon + region.box[:2] for polygon in polygons(inside)]


def common_folder(paths: list[str]) -> str:
    """The innermost folder that holds all files; "" where there is none."""
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    except ValueError:  # no paths, or several drives
        return ""


def relative(path: str, root: str) -> str:
    """A path within the folder `root`, with slashes."""
    return Path(os.path.relpath(path, root) if root else path).as_posix()
