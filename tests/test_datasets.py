"""What is wrong with a data set is said in one line."""

import json
from pathlib import Path

import pytest
from trees import SPOT, btad, dagm, draw, draw_all, folder, headct, isic, meta, mvtec, polyps, sdd, tn3k, visa, write

from tipsomaly.data.layouts import LAYOUTS, read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError


def refused(root, *parts: str, **options) -> None:
    """Reading says all of `parts`, in one line."""
    with pytest.raises(DatasetError) as caught:
        read_dataset(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "tree, name, mask, picture",
    [
        (mvtec, "x", "bottle/ground_truth/broken_large/000_mask.png", "bottle/test/broken_large/000.png"),
        (btad, "x", "01/ground_truth/ko/0000.png", "01/test/ko/0000.bmp"),
        (sdd, "x", "kos02/Part0_label.bmp", "kos02/Part0.jpg"),
        (dagm, "x", "Class1/Test/Label/0004_label.PNG", "Class1/Test/0004.PNG"),
        (isic, "x", "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png", "ISIC_0000003.jpg"),
        (polyps, "colon", "masks/2.png", "images/2.png"),
        (tn3k, "x", "test-mask/0000.jpg", "test-image/0000.jpg"),
        (folder, "x", "masks/dent/c_mask.png", "dent/c.png"),
        (visa, "x", "pcb1/Data/Masks/Anomaly/000.png", "pcb1/Data/Masks/Anomaly/000.png"),
        (meta, "x", "isic/ground_truth/bad/b.png", "isic/ground_truth/bad/b.png"),
    ],
)
def test_a_missing_mask_is_named(tmp_path, tree, name, mask, picture):
    root = tree(tmp_path / name)
    (root / mask).rename(root / f"{mask}.bak")
    refused(root, picture)


def test_a_class_without_its_masks_is_refused_when_others_have_theirs(tmp_path):
    root = mvtec(tmp_path)
    (root / "bottle/ground_truth/broken_large/000_mask.png").unlink()
    refused(root, "bottle/test/broken_large/000.png: defective, but without a mask", classes=["bottle"])
    assert len(read_dataset(root, classes=["metal_nut"])) == 2


def test_a_mask_of_another_size_is_named_with_its_picture(tmp_path):
    root = mvtec(tmp_path)
    mask = draw(root / "bottle/ground_truth/broken_large/000_mask.png", SPOT.T.copy())
    picture = root / "bottle/test/broken_large/000.png"
    refused(root, f"the mask {mask} is 10 x 14 pixels, its picture {picture} is 14 x 10")
    with pytest.raises(DatasetError, match="is 10 x 14 pixels, its picture"):
        load_mask(Sample(picture, mask, "bottle", "broken_large", 1))


def test_a_damaged_mask_is_named(tmp_path):
    root = mvtec(tmp_path)
    mask = root / "bottle/ground_truth/broken_large/000_mask.png"
    whole = mask.read_bytes()
    sample = read_dataset(root)[0]
    mask.write_bytes(whole[: len(whole) // 2 + 10])
    with pytest.raises(DatasetError, match=r"000_mask\.png: cannot be read as a picture"):
        load_mask(sample)
    mask.write_bytes(b"")
    refused(root, f"{mask}: cannot be read as a picture")


@pytest.mark.parametrize(
    "tree, stray, kind",
    [
        (mvtec, "stray.png", "class"),
        (mvtec, "bottle/test/stray.JPG", "defect"),
        (folder, "stray.png", "defect"),
    ],
)
def test_a_picture_without_a_class_or_defect_is_named(tmp_path, tree, stray, kind):
    root = tree(tmp_path)
    refused(draw(root / stray).parents[stray.count("/")], stray, f"this picture lies in no {kind} folder")


@pytest.mark.parametrize(
    "tree, empty, message",
    [
        (mvtec, "cable", "this folder is empty"),
        (mvtec, "cable/test", "no defect folder in it"),
        (mvtec, "cable/test/cut", "this folder is empty"),
        (folder, "hole", "this folder is empty"),
        (dagm, "Class2/Test", "no pictures in this folder"),
        (sdd, "kos03", "no pictures in this folder"),
    ],
)
def test_an_empty_folder_is_named(tmp_path, tree, empty, message):
    root = tree(tmp_path)
    (root / empty).mkdir(parents=True)
    if tree is dagm:
        (root / empty / "Label").mkdir()
    refused(root, f"{root / empty}: {message}")


def test_folders_that_are_not_there_are_named(tmp_path):
    refused(tmp_path / "none", f"{tmp_path / 'none'}: no such folder")
    refused(draw(tmp_path / "a" / "b.png"), "b.png: not a folder")
    root = mvtec(tmp_path / "mvtec")
    (root / "bottle/train/good/000.png").unlink()
    refused(root, "bottle/train/good: this folder is empty", split="train")
    (root / "bottle/train/good").rmdir()
    (root / "bottle/train").rmdir()
    refused(root, f"{root / 'bottle/train'}: No such file or directory", split="train")
    root = dagm(tmp_path / "dagm")
    (root / "Class1/Train/Label").rename(root / "Class1/elsewhere")
    refused(root, "Class1/Train/Label: no such folder, which says what is defective", split="train")


def test_an_unknown_layout_says_what_was_looked_for(tmp_path):
    draw_all(tmp_path, "pictures/a.png other/b.png")
    trees = [layout.tree for layout in LAYOUTS.values()]
    refused(tmp_path, f"{tmp_path}: no known layout; looked for", "mvtec: CLASS/test", *trees)
    refused(tmp_path, "no known layout; looked for sdd: kosNN/PartN.jpg", layout="sdd")


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "{outside}/secret.png"])
@pytest.mark.parametrize("which", ["img_path", "mask_path"])
def test_lists_cannot_name_files_outside_of_the_data_set(tmp_path, name, which):
    draw(tmp_path / "secret.png")
    name = name.format(outside=tmp_path)
    root = meta(tmp_path / "root")
    content = json.loads((root / "meta.json").read_text())
    content["test"]["isic"][1][which] = name
    write(root / "meta.json", json.dumps(content))
    refused(root, "meta.json", "leads out of the folder")
    table = visa(tmp_path / "visa") / "split_csv" / "1cls.csv"
    real = {"img_path": "pcb1/Data/Images/Anomaly/000.JPG", "mask_path": "pcb1/Data/Masks/Anomaly/000.png"}[which]
    write(table, table.read_text().replace(real, name))
    refused(tmp_path / "visa", "1cls.csv", "leads out of the folder")


def test_outside_is_outside_of_the_current_folder_too(tmp_path, monkeypatch):
    draw(tmp_path / "secret.png")
    root = visa(tmp_path / "visa")
    monkeypatch.chdir(root)
    assert read_dataset(".")[0].image == Path("pcb1/Data/Images/Anomaly/000.JPG")
    table = root / "split_csv" / "1cls.csv"
    write(table, table.read_text().replace("pcb1/Data/Images/Normal/0002.JPG", "../secret.png"))
    refused(".", "'../secret.png' leads out of the folder")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"img_path": "isic/none.png"}, "none.png: no such file"),
        ({"img_path": "isic/no\0ne.png"}, "no such file"),
        ({"img_path": ""}, "an entry with the file name ''"),
        ({"img_path": 7}, "an entry with the file name 7"),
        ({"cls_name": " "}, "a.png has no class"),
        ({"cls_name": None}, "a.png has no class"),
        ({"anomaly": 2}, "a.png is 2, neither 0 nor 1"),
        ({"anomaly": [1]}, "a.png is [1], neither 0 nor 1"),
    ],
)
def test_odd_entries_of_meta_json_are_named(tmp_path, change, message):
    root = meta(tmp_path)
    content = json.loads((root / "meta.json").read_text())
    content["test"]["isic"][0] |= change
    write(root / "meta.json", json.dumps(content))
    refused(root, "meta.json", message)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"test": 3}', '{"test": {"a": 3}}', '{"test": {"a": ["b"]}}', "[" * 100_000]
)
def test_something_else_called_meta_json_is_refused(tmp_path, text):
    write(tmp_path / "meta.json", text)
    refused(tmp_path, f"{tmp_path / 'meta.json'}: not of the form")


@pytest.mark.parametrize("text", ['{"test": {}}', '{"train": {"a": []}}', '{"test": {"a": []}}'])
def test_a_split_without_pictures_is_refused(tmp_path, text):
    write(tmp_path / "meta.json", text)
    refused(tmp_path, "no pictures in the split 'test'")


def test_odd_tables_are_named(tmp_path):
    root = headct(tmp_path)
    for text, message in (
        ("name,label\n1,0\n", "the first line must name the columns id, hemorrhage"),
        ("", "the first line must name the columns id, hemorrhage"),
        ("id, hemorrhage\n0,yes\n", "is 'yes', neither 0 nor 1"),
        ("id, hemorrhage\n0\n", "is '', neither 0 nor 1"),
        ("id, hemorrhage\n9,1\n", "009.png: no such file"),
    ):
        write(root / "labels.csv", text)
        refused(root, message, "labels.csv")
    (root / "labels.csv").write_bytes(b"id, hemorrhage\n\xff\xfe,1\n")
    refused(root, "labels.csv: not a CSV file")


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    root = folder(tmp_path)
    (root / "new\nline").mkdir()
    refused(root, r"new\nline: this folder is empty")
