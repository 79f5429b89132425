"""What the Space does for a visitor, kind or hostile."""

import csv
import json
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tipsomaly import ImageError, ModelError, Pipeline
from tipsomaly.detection.calibration import Calibration
from tipsomaly.models.hub import BUNDLED
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.methods import METHODS
from tipsomaly.service import exports, space, uploads
from tipsomaly.service.exports import Row, record, write_csv, write_files, write_overlays
from tipsomaly.service.space import Space
from tipsomaly.service.uploads import own_prompts, pictures, read_mask
from tipsomaly.studies.metrics import PixelMetrics

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "examples" / "pictures" / "zipper-1.jpg"
MASK = ROOT / "examples" / "masks" / "zipper-1.png"
NANO = "nano / industrial"
METHOD_SETS = sorted(path.stem for path in (BUNDLED["nano"] / "prompts").glob("*.safetensors") if path.stem in METHODS)
NANO_SETS = [NANO, "nano / medical", *(f"nano / {name}" for name in METHOD_SETS)]


@pytest.fixture(scope="module")
def service():
    return Space()


@pytest.fixture(scope="module")
def inspection(service):
    return service.inspect(PICTURE, "zipper", "industrial", NANO)


def test_an_inspection_is_what_the_pipeline_says(service, inspection):
    assert service.choices == NANO_SETS
    pipeline = Pipeline.from_pretrained()
    expected = pipeline(PICTURE, "zipper")
    assert record(inspection.result, 0.4) == record(expected, 0.4)
    assert (inspection.normal, inspection.abnormal) == pipeline.similarities(expected)
    assert record(service.inspect(PICTURE, "zipper", "medical", "nano / medical").result) == record(
        Pipeline.from_pretrained(domain="medical")(PICTURE, "zipper")
    )


def test_large_pictures_are_shown_small_and_scored_whole(service, tmp_path):
    path = tmp_path / "large.png"
    Image.open(PICTURE).resize((3000, 1500)).save(path)
    inspection = service.inspect(path, "zipper", "industrial", NANO)
    assert (inspection.result.width, inspection.result.height) == (3000, 1500)
    assert inspection.shown.image.size == (1024, 512)
    assert inspection.shown.anomaly_map.shape == (512, 1024)
    assert inspection.result.score == inspection.shown.score


def test_too_many_pixels_are_refused(service, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PIXELS", 448 * 447)
    with pytest.raises(ImageError, match="448 x 448 is 0 megapixels, at most 0 are taken"):
        service.inspect(PICTURE, "zipper", "industrial", NANO)


def test_a_large_photograph_is_reduced_and_says_so(service, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "ENOUGH_PIXELS", 300 * 300)
    result = service.inspect(PICTURE, "zipper", "industrial", NANO).result
    assert "reduced from 448 x 448 to 224 x 224 pixels" in result.note
    with Image.open(next(path for path in write_files(result, 0.4, tmp_path) if path.suffix == ".png")) as overlay:
        assert overlay.size == (result.width, result.height) == (224, 224)
    found = service.compare(PICTURE, "zipper", "industrial", NANO, mask=MASK)  # of the whole size
    assert found.truth.shape == (224, 224) and found.truth.any() and found.metrics["fixed"]["pixel_auroc"]


@pytest.mark.parametrize(
    "changes",
    [{"model": "/etc"}, {"domain": "x"}, {"class_name": " "}, {"class_name": None}, {"class_name": "x" * 101}],
)
def test_what_is_not_on_offer_is_refused(service, changes):
    given = {"class_name": "zipper", "domain": "industrial", "model": NANO} | changes
    with pytest.raises(ValueError, match=r"no such choice|class name"):
        service.inspect(PICTURE, **given)


def test_requests_do_not_change_each_other(service):
    jobs = [(name, domain) for name in ("zipper", "felt", "skin") for domain in ("industrial", "medical")] * 3

    def scored(job):
        return record(service.inspect(PICTURE, *job, NANO).result)

    alone = {job: scored(job) for job in dict.fromkeys(jobs)}
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(scored, jobs)) == [alone[job] for job in jobs]


def test_a_comparison_with_own_phrases_and_a_mask(service):
    found = service.compare(PICTURE, "zipper", "industrial", NANO, "clean", "dirty\n{} with rust", MASK)
    pipeline = Pipeline.from_pretrained()
    expected = pipeline.compare(PICTURE, "zipper", own_prompts("clean", "dirty\n{} with rust"))
    assert list(found.results)[:4] == ["fixed", "learned", "decoupled", "own"]
    assert list(found.results) == list(expected)
    truth = np.asarray(Image.open(MASK).convert("L")) > 127
    for name, result in expected.items():
        assert found.results[name].score == result.score
        metrics = PixelMetrics(exact=True)
        metrics.update(result.anomaly_map, truth)
        assert found.metrics[name]["pixel_auroc"] == pytest.approx(metrics.compute()["pixel_auroc"], abs=1e-4)
        assert found.metrics[name]["aupro"] == pytest.approx(metrics.compute()["aupro"], abs=1e-4)
    assert service.compare(PICTURE, "zipper", "industrial", NANO).metrics == {}


def test_own_phrases():
    own = own_prompts(" clean  part\n\n", "rusty\n{} with a hole")
    assert own.normal == ("clean part {}",)
    assert own.abnormal == ("rusty {}", "{} with a hole")
    assert own_prompts("", " \n ") is None
    for normal, abnormal in (("clean", ""), ("", "dirty"), ("{} {}", "x"), ("x" * 200, "y"), ("a\n" * 30, "b")):
        with pytest.raises(ValueError, match=r"phrase|exactly once"):
            own_prompts(normal, abnormal)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the mask has 448 x 448 pixels, the picture 10 x 20"):
        read_mask(MASK, (10, 20))


def test_masks_are_read_as_those_of_data_sets(tmp_path):
    alpha = np.zeros((20, 10, 4), np.uint8)
    alpha[3:7, 2:5] = 255  # white on transparent
    Image.fromarray(alpha).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (10, 20)).sum() == 12
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^This mask cannot be used: cannot be read as a picture"):
        read_mask(tmp_path / "broken.png", (10, 20))


def test_a_broken_picture_is_a_row_of_the_batch(service, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(PICTURE.read_bytes()[:1000])
    archive = tmp_path / "two.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(PICTURE, "../../etc/zipper.jpg")
        file.writestr("folder/note.txt", "no picture")
        file.writestr("__MACOSX/._zipper.jpg", "x")
        file.writestr(".DS_Store", "x")
        file.mkdir("empty")
    rows = list(service.batch([PICTURE, broken, archive], "zipper", "industrial", NANO))
    assert [row.name for row in rows] == ["zipper-1.jpg", "broken.png", "etc/zipper.jpg", "folder/note.txt"]
    assert [row.error is None for row in rows] == [True, False, True, False]
    assert rows[0].result.score == rows[2].result.score == Pipeline.from_pretrained()(PICTURE, "zipper").score
    assert str(tmp_path) not in str(rows[1].error)
    assert [cells[0] for cells in exports.table(rows)][:2] == ["broken.png", "folder/note.txt"]


def test_a_batch_has_an_end(service, monkeypatch):
    monkeypatch.setattr(space, "MAX_BATCH", 3)
    assert len(list(service.batch([PICTURE] * 5, "zipper", "industrial", NANO))) == 3


def test_zip_bombs_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FILE", 10_000)
    monkeypatch.setattr(uploads, "MAX_UNPACKED", 25_000)
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, size in (("small", 9_000), ("bomb", 10**8), ("next", 5_000), ("last", 5_000)):
            file.writestr(name, b"\0" * size)
    entries = dict(pictures([archive]))
    assert len(entries["small"]) == 9_000
    assert "more than" in str(entries["bomb"])
    assert len(entries["next"]) == 5_000
    assert isinstance(entries["last"], ImageError)  # 25,000 bytes are used up


def test_zips_that_cannot_be_unpacked(tmp_path):
    archive = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", b"x" * 100)
    content = bytearray(archive.read_bytes())
    encrypted = bytearray(content)
    encrypted[6] |= 1
    encrypted[content.index(b"PK\x01\x02") + 8] |= 1
    wrong = content.replace(b"x" * 100, b"y" * 100)
    future = bytearray(content)
    future[content.index(b"PK\x01\x02") + 6] = 200  # needs version 20.0 of the format
    archive.write_bytes(future)
    ((name, entry),) = pictures([archive])
    assert name == "odd.zip"
    assert "damaged" in str(entry)
    for changed in (encrypted, wrong):
        archive.write_bytes(changed)
        ((name, entry),) = pictures([archive])
        assert name == "a.png"
        assert "cannot be unpacked" in str(entry)


def test_files_hold_the_result(inspection, tmp_path):
    result = inspection.result
    at = round(0.5 * float(result.anomaly_map.max()), 2)
    paths = {path.name: path for path in write_files(result, at, tmp_path)}
    np.testing.assert_array_equal(np.load(paths["map.npy"]), result.anomaly_map)
    wide = np.asarray(Image.open(paths["map_16bit.png"]))
    assert np.abs(wide / 65535 - result.anomaly_map).max() <= 0.5 / 65535 + 1e-7
    np.testing.assert_array_equal(np.asarray(Image.open(paths["mask.png"])), result.mask(at))
    assert Image.open(paths["overlay.png"]).size == (result.width, result.height)
    assert json.loads(paths["regions.json"].read_text()) == json.loads(json.dumps(record(result, at)))
    coco = json.loads(paths["coco.json"].read_text())
    assert [(a["bbox"][:2], a["area"]) for a in coco["annotations"]] == [
        ([*r.box[:2]], r.area) for r in result.regions(at)
    ]
    assert coco["images"][0]["file_name"] in Path(str(result.source)).name
    assert str(tmp_path) not in json.dumps(coco) and str(Path.cwd()) not in json.dumps(coco)  # no path of the server


def test_names_in_tables_and_archives_do_no_harm(inspection, tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"overlay")
    names = '=HYPERLINK("x")', "../../<b>é.png"
    rows = [Row(name, inspection.shown, overlay=tmp_path / "0.jpg") for name in names] + [Row("@x", error="-bad")]
    write_csv(exports.table(rows), tmp_path / "scores.csv")
    cells = list(csv.reader((tmp_path / "scores.csv").open(encoding="utf-8-sig")))
    assert [row[0] for row in cells] == ["picture", "'@x", '\'=HYPERLINK("x")', "../../<b>é.png"]
    assert cells[1][-1] == "'-bad"
    write_overlays(rows, tmp_path / "overlays.zip")
    assert zipfile.ZipFile(tmp_path / "overlays.zip").namelist() == ["001-_HYPERLINK_x_.jpg", "002-_b_.jpg"]


def test_normal_pictures_give_verdicts_too(tmp_path):
    pipe = Pipeline.from_pretrained()
    pipe.make_references([PICTURE], "zipper").save(tmp_path / "zipper.safetensors")
    service = Space(calibrations=[tmp_path / "zipper.safetensors"])
    label = NANO
    result = service.inspect(PICTURE, "zipper", "industrial", label).result
    assert result.evidence == "both" and result.is_anomalous is False
    assert service.inspect(PICTURE, "nut", "industrial", label).result.evidence == "prompts"


def test_calibrations_give_verdicts_where_they_fit(tmp_path):
    settings = Pipeline.from_pretrained().settings()
    Calibration(0.5, 0.4, "zipper", 0.01, 10, settings).save(tmp_path / "zipper.json")
    Calibration(0.5, 0.4, "zipper", 0.01, 10, settings | {"model": "x"}).save(tmp_path / "other.json")
    service = Space(calibrations=[tmp_path / "zipper.json"])
    verdicts = [
        service.inspect(PICTURE, name, domain, model).result.is_anomalous
        for name, domain, model in (
            ("zipper", "industrial", NANO),
            ("felt", "industrial", NANO),
            ("zipper", "medical", NANO),
            ("zipper", "industrial", "nano / medical"),
        )
    ]
    assert verdicts == [True, None, None, None]
    (row,) = service.batch([PICTURE], "zipper", "industrial", NANO)
    assert exports.verdict(row.result) == "anomalous"
    with pytest.raises(ModelError, match="no model on offer fits"):
        Space(calibrations=[tmp_path / "other.json"])


def test_prompts_that_are_released_but_not_in_the_folder_are_on_offer(monkeypatch):
    asked = []

    def find(folder, name):
        asked.append(name)
        return LearnedPrompts.load(folder.prompt_sets()["industrial"])

    monkeypatch.setattr(space, "released_prompts", lambda folder: {"visa": None})
    monkeypatch.setattr(space, "read_prompts", find)
    names = [*NANO_SETS[:2], "nano / visa", *NANO_SETS[2:]]  # those of other methods last
    assert Space().choices == names
    assert asked == [name.removeprefix("nano / ") for name in names]


def test_a_gpu_is_borrowed_where_spaces_has_them(monkeypatch, service):
    calls = []

    def borrow(function):
        def wrapped(*arguments):
            calls.append(function.__name__)
            return function(*arguments)

        return wrapped

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=borrow))
    lent = Space()
    assert record(lent.inspect(PICTURE, "zipper", "industrial", NANO).result) == record(
        service.inspect(PICTURE, "zipper", "industrial", NANO).result
    )
    lent.compare(PICTURE, "zipper", "industrial", NANO)
    list(lent.batch([PICTURE], "zipper", "industrial", NANO))
    assert calls == ["_score", "_compare", "_stream"]
