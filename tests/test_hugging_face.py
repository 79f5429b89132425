"""Data sets of Hugging Face's library: those that it wrote into a folder, and what it does not find. Not the Hub."""

import json

import datasets
import pytest
from pyarrow import parquet
from trees import png

from tipsomaly.data.hugging_face import HubDataset
from tipsomaly.data.labelled import save_labelled
from tipsomaly.data.layouts import read_dataset
from tipsomaly.errors import DatasetError, FetchError, OptionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same rows in each of the forms that a folder can have, and one of plain pictures."""
    folder = tmp_path_factory.mktemp("hf")
    rows = {
        "mask": [{"bytes": png(9), "path": None}] * 4,
        "image": [
            {"bytes": png(0), "path": None},
            {"bytes": b"broken", "path": "far/away/b.png"},
            None,
            {"bytes": png(1), "path": "../c\n.png"},
        ],
    }
    data = datasets.Dataset.from_dict(rows, datasets.Features({name: datasets.Image() for name in rows}))
    datasets.disable_progress_bars()
    data.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(folder / "splits")
    (folder / "parquet").mkdir()
    data.to_parquet(folder / "parquet" / "test-0.parquet")
    (folder / "pictures" / "train").mkdir(parents=True)
    for i in range(2):
        (folder / "pictures" / "train" / f"{i}.png").write_bytes(png(i))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["one", "splits", "splits:test", "parquet", "parquet:test"])
def test_pictures_of_a_split(folder, name):
    found = {picture.name: picture.content for picture in HubDataset(f"hf://{folder}/{name}")}
    split = "all" if name == "one" else "test"
    start = f"hf://{folder}/{name.split(':')[0]}:{split}/"
    assert [key.removeprefix(start) for key in found][:3] == ["000000", "000001_b.png", "000002"]
    first, second, third, last = found.values()
    assert (first, second, last) == (png(0), b"broken", png(1))
    assert str(third) == f"{start}000002: no picture in this row"
    assert all(key.isprintable() for key in found)


def test_detect(here, golden, folder, tmp_path):
    command = ["detect", f"hf://{folder}/splits", f"hf://{folder}/pictures", "--model", golden.folder]
    done = here(*command, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.endswith("2 of 6 pictures failed\n")
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert lines[1]["error"].startswith(f"hf://{folder}/splits:test/000001_b.png: not a picture in a known format")
    assert lines[4]["image"] == f"hf://{folder}/pictures:train/000000_0.png"
    expected = [
        json.loads(line)["score"] for line in here(*command[:1], folder, *command[3:], "--json").stdout.splitlines()
    ]
    assert [lines[i]["score"] for i in (4, 5)] == pytest.approx(expected, abs=1e-4)
    assert [lines[i]["score"] for i in (0, 3)] == pytest.approx(expected, abs=1e-4)
    assert "4 of 6 pictures have results" in here(*command, "--output", tmp_path / "out").stderr


def test_a_data_set_cannot_read_other_files(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(0))
    rows = [{"bytes": None, "path": path} for path in (f"{tmp_path}/secret.png", "http://localhost/x.png")]
    data = datasets.Dataset.from_dict({"image": rows}, datasets.Features({"image": datasets.Image()}))
    (tmp_path / "data").mkdir()
    table = data.data.table.cast(data.features.arrow_schema)  # the library itself would take the files in
    parquet.write_table(table, tmp_path / "data" / "test.parquet")
    errors = [str(picture.content).split(": ")[-1] for picture in HubDataset(f"hf://{tmp_path}/data")]
    assert errors == ["a file outside of the data set"] * 2


def test_what_cannot_be_used_is_one_line(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.csv").write_text("a,b\n1,2\n")
    for name, kind, message in (
        ("hf://nowhere", OptionError, "neither a folder that is there nor of the form hf://ORG/NAME"),
        ("hf://a/b/c/d", OptionError, "of the form"),
        (f"hf://{folder}/splits:valid", DatasetError, "its splits are train, test"),
        (f"hf://{tmp_path}/empty", DatasetError, "hf://"),
        (f"hf://{tmp_path}/texts", DatasetError, "no column of pictures"),
        ("hf://organisation/name", FetchError, "hf://organisation/name: "),
    ):
        with pytest.raises(kind, match=message) as error:
            HubDataset(name)
        assert str(error.value).isprintable()


def labelled(folder, labels, kind, **more):
    """A data set of one picture for each label, with masks of what is not at place 0."""
    columns = {"image": datasets.Image(), "label": kind} | {name: datasets.Value("string") for name in more}
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(labels))], "label": labels} | more
    rows["mask"] = [{"bytes": png(i), "path": None} if i else None for i in range(len(labels))]
    data = datasets.Dataset.from_dict(rows, datasets.Features(columns | {"mask": datasets.Image()}))
    data.save_to_disk(folder)
    return HubDataset(f"hf://{folder}")


@pytest.mark.parametrize(
    ("labels", "kind", "defects"),
    [
        ([1, 0, 2], datasets.ClassLabel(names=["crack", "Good", "dent"]), ["good", "crack", "dent"]),
        ([0, 1, 1], datasets.Value("int64"), ["good", "anomaly", "anomaly"]),
        ([False, True, False], datasets.Value("bool"), ["good", "anomaly", "good"]),
        (["normal", "hole", "ok"], datasets.Value("string"), ["good", "hole", "good"]),
    ],
)
def test_labels_are_understood(tmp_path, labels, kind, defects):
    data = labelled(tmp_path / "data", labels, kind, category=["nut", "nut", "felt"])
    samples = read_dataset(save_labelled(data, tmp_path / "out"))
    assert [sample.defect for sample in samples] == defects
    assert [sample.label for sample in samples] == [int(defect != "good") for defect in defects]
    assert [sample.class_name for sample in samples] == ["nut", "nut", "felt"]
    for i, sample in enumerate(samples):
        assert sample.image.read_bytes() == png(i)
        assert sample.mask is None if defects[i] == "good" else sample.mask.read_bytes() == png(i)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*")}
    save_labelled(data, tmp_path / "out")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*")}


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0, 1], datasets.ClassLabel(names=["cat", "dog"]), "which is normal is not said"),
        ([0, -1], datasets.Value("int64"), "row 1: it has no label"),
        ([0, None], datasets.Value("int64"), "row 1: it has no label"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path, labels, kind, message):
    with pytest.raises(DatasetError, match=message):
        save_labelled(labelled(tmp_path / "data", labels, kind), tmp_path / "out")


def test_evaluate(here, golden, folder, tmp_path):
    labelled(tmp_path / "data", [0, 1, 0, 1], datasets.Value("int64"))
    done = here("evaluate", f"hf://{tmp_path}/data", "--model", golden.folder, "--output", tmp_path / "out")
    assert done.returncode == 0
    again = here("evaluate", tmp_path / "out" / "pictures", "--model", golden.folder, "--output", tmp_path / "again")
    assert done.stdout == again.stdout
    done = here("evaluate", f"hf://{folder}/one", "--output", tmp_path / "none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no column says what is defective" in done.stderr
