"""What other tools read of results; pycocotools decodes masks and rasterizes polygons."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scipy import ndimage
from typer.testing import CliRunner

from tipsomaly.cli import app
from tipsomaly.detection.formats import FORMATS
from tipsomaly.detection.outlines import compressed, polygons, run_lengths
from tipsomaly.detection.result import Result

RUNNER = CliRunner()


def rasterized(outlines, height, width):
    parts = rle.frPyObjects([outline.ravel().astype(float).tolist() for outline in outlines], height, width)
    return rle.decode(rle.merge(parts)).astype(bool)


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'


def test_run_lengths_and_polygons_are_what_pycocotools_makes_of_them():
    random = np.random.default_rng(0)
    for _ in range(100):
        height, width = (int(side) for side in random.integers(1, 30, 2))
        mask = random.random((height, width)) < random.random()
        encoded = rle.encode(np.asfortranarray(mask))
        assert compressed(run_lengths(mask)) == encoded["counts"].decode()
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        outlines = polygons(mask, tolerance=0)
        assert len(outlines) == count
        filled = np.zeros_like(mask)
        for i in range(1, count + 1):
            filled |= ndimage.binary_fill_holes(labels == i)
        if count:
            assert np.array_equal(rasterized(outlines, height, width), filled)


def test_simpler_polygons_stay_close():
    noise = ndimage.gaussian_filter(np.random.default_rng(1).random((200, 300)), 12)
    mask = noise > np.quantile(noise, 0.9)
    exact, simple = polygons(mask, 0), polygons(mask)
    assert sum(map(len, simple)) < 0.5 * sum(map(len, exact))
    drawn, wanted = rasterized(simple, *mask.shape), rasterized(exact, *mask.shape)
    assert (drawn & wanted).sum() / (drawn | wanted).sum() > 0.97


def result(path, peaks, pixel_threshold=None, image_threshold=None):
    """A result of a 60 x 40 picture whose map is high in one or two patches."""
    patch_map = np.full((8, 12), 0.05, np.float32)
    for y, x, value in peaks:
        patch_map[y, x] = value
    found = Result(0.4, 0.3, patch_map, 60, 40, (112, 168), "nut", "decoupled", 1.0, source=path)
    return Result(**{**vars(found), "pixel_threshold": pixel_threshold, "image_threshold": image_threshold})


@pytest.fixture
def results(tmp_path):
    """A picture with two regions and one with none, in two folders; the names are hostile."""
    found = {}
    for name, peaks in (("a/<b>&'1.png", [(2, 3, 0.95), (6, 9, 0.8)]), ("c/=2.png", [])):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True)
        Image.effect_noise((60, 40), 40).convert("RGB").save(path)
        found[str(path)] = result(path, peaks, 0.5, 1.0)
    return found


def write(name, results, out):
    with FORMATS[name](out) as target:
        for i, (image, found) in enumerate(results.items()):
            target.add(image, found, f"picture_{i}")
        target.fail("broken.png", "broken.png: damaged or truncated")


def test_coco_is_read_by_pycocotools(results, tmp_path, capsys):
    write("coco", results, tmp_path)
    data = COCO(str(tmp_path / "coco.json"))
    images = data.loadImgs(data.getImgIds())
    assert [image["file_name"] for image in images] == ["a/<b>&'1.png", "c/=2.png"]
    assert data.dataset["info"]["folder"] == str(tmp_path / "pictures")
    first = next(iter(results.values()))
    annotations = data.loadAnns(data.getAnnIds(imgIds=images[0]["id"]))
    assert [a["score"] for a in annotations] == [region.peak for region in first.regions(0.5)]
    detections = data.loadRes(str(tmp_path / "coco_results.json"))
    masks = [detections.annToMask(a).astype(bool) for a in detections.loadAnns(detections.getAnnIds(imgIds=1))]
    assert np.array_equal(np.logical_or(*masks), first.mask(0.5))
    for annotation, mask in zip(annotations, masks, strict=True):
        drawn = data.annToMask(annotation).astype(bool)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.9
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == rle.toBbox(rle.encode(np.asfortranarray(mask))).tolist()
    assert data.getAnnIds(imgIds=2) == []


def test_yolo_has_a_picture_and_a_file_of_shares_for_each(results, tmp_path):
    write("yolo", results, tmp_path)
    folder = tmp_path / "yolo"
    config = yaml.safe_load((folder / "data.yaml").read_text())
    assert config["names"] == {0: "anomaly"}
    assert (folder / "classes.txt").read_text() == "anomaly\n"
    stems = [sorted(path.stem for path in (folder / part).iterdir()) for part in ("images", "labels", "boxes")]
    assert stems == [["picture_0", "picture_1"]] * 3
    first = next(iter(results.values()))
    lines = (folder / "labels" / "picture_0.txt").read_text().splitlines()
    boxes = (folder / "boxes" / "picture_0.txt").read_text().splitlines()
    for line, box, region in zip(lines, boxes, first.regions(0.5), strict=True):
        kind, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2) * (60, 40)
        assert kind == "0"
        assert np.allclose([*points.min(0), *points.max(0)], region.box, atol=1)
        kind, x, y, width, height, score = map(float, box.split())
        expected = [(x - width / 2) * 60, (y - height / 2) * 40, (x + width / 2) * 60, (y + height / 2) * 40]
        assert np.allclose(expected, region.box, atol=1e-3)
        assert score == pytest.approx(region.peak, abs=1e-6)
    assert (folder / "labels" / "picture_1.txt").read_text() == ""


def test_label_studio_tasks_fit_their_labelling_interface(results, tmp_path):
    write("labelstudio", results, tmp_path)
    view = ET.parse(tmp_path / "labelstudio.xml").getroot()
    controls = {c.get("name"): c for c in view if c.get("toName")}
    assert view.find("Image").get("value") == "$image"
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    assert [task["data"]["image"].startswith("/data/local-files/?d=") for task in tasks] == [True, True]
    first = next(iter(results.values()))
    shapes = tasks[0]["predictions"][0]["result"]
    assert len({shape["id"] for shape in shapes}) == len(shapes) == 4
    for shape in shapes:
        control = controls[shape["from_name"]]
        assert shape["to_name"] == control.get("toName") == "image"
        assert shape["type"] == control.tag.lower()
        assert shape["value"][shape["type"]] == ["anomaly"]
        assert [label.get("value") for label in control] == ["anomaly"]
        assert (shape["original_width"], shape["original_height"]) == (60, 40)
    boxes = [shape["value"] for shape in shapes if shape["type"] == "rectanglelabels"]
    for box, region in zip(boxes, first.regions(0.5), strict=True):
        found = [box["x"] * 0.6, box["y"] * 0.4, (box["x"] + box["width"]) * 0.6, (box["y"] + box["height"]) * 0.4]
        assert np.allclose(found, region.box)
    assert tasks[1]["predictions"][0]["result"] == []


def test_csv_has_a_row_a_picture_and_a_row_a_region(results, tmp_path):
    write("csv", results, tmp_path)
    rows = list(csv.DictReader((tmp_path / "pictures.csv").open(encoding="utf-8")))
    assert [row["regions"] for row in rows] == ["2", "0", ""]
    assert rows[2]["error"].startswith("broken.png")
    first = next(iter(results.values()))
    assert float(rows[0]["score"]) == first.score
    assert rows[0]["is_anomalous"] == "True"
    regions = list(csv.DictReader((tmp_path / "regions.csv").open(encoding="utf-8")))
    assert [tuple(int(r[k]) for k in ("left", "top", "right", "bottom")) for r in regions] == [
        region.box for region in first.regions(0.5)
    ]


class Page(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_report_stands_alone_and_escapes_names(results, tmp_path):
    write("html", results, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Page(text).tags
    cards = [attributes for tag, attributes in tags if tag == "figure"]
    assert [c["data-name"] for c in cards] == list(results)  # the higher score first
    assert [float(c["data-score"]) for c in cards] == pytest.approx([r.score for r in results.values()], abs=1e-6)
    addresses = [a[k] for _, a in tags for k in ("src", "href") if k in a]
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(a.get("class") for tag, a in tags if tag == "b")  # the one in the picture's name is no tag
    assert "broken.png: damaged" in text
    line = next(a for tag, a in tags if tag == "line")
    assert float(line["x1"]) == 300  # the threshold 1.0 on a scale to 2


def test_an_empty_run_leaves_files_that_can_be_read(tmp_path):
    for name in FORMATS:
        with FORMATS[name](tmp_path):
            pass
    assert COCO(str(tmp_path / "coco.json")).getImgIds() == []
    assert json.loads((tmp_path / "labelstudio.json").read_text()) == []


def test_the_commands_write_them_beside_the_results(golden, drawn, tmp_path):
    pictures = drawn / "felt" / "test" / "spot"
    (tmp_path / "broken.png").write_bytes((pictures / "000.png").read_bytes()[:60])
    arguments = ["detect", pictures, tmp_path / "broken.png", "--model", golden.folder, "--output", tmp_path]
    done = RUNNER.invoke(app, [*map(str, arguments), *(x for name in FORMATS for x in ("--format", name))])
    assert done.exit_code == 1, done.output  # one of the pictures is broken
    images = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["000.png", "001.png", "002.png"]
    assert "broken.png" in (tmp_path / "pictures.csv").read_text()
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<figure ") == 3
    arguments = ["evaluate", drawn, "--model", golden.folder, "--class", "felt", "--output", tmp_path / "test"]
    done = RUNNER.invoke(app, [*map(str, arguments), "--format", "coco"])
    assert done.exit_code == 0, done.output
    assert len(COCO(str(tmp_path / "test" / "coco.json")).getImgIds()) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "ray", "--format", "coco"], "parquet or jsonl"),
        (["--format", "parquet"], "for --engine ray"),
        (["--format", "coco"], "--format coco needs --output DIR"),
    ],
)
def test_a_format_that_does_not_fit_is_wrong_usage(arguments, message):
    done = RUNNER.invoke(app, ["detect", "x.png", *arguments])
    assert done.exit_code == 2
    assert message in done.output
