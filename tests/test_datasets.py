import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tipsomaly.data.layouts import LAYOUTS, find_layout, read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample, by_class
from tipsomaly.data.words import call, domain
from tipsomaly.errors import DatasetError

SIZE = (10, 14)
"""height, width"""
SPOT = np.zeros(SIZE, np.uint8)
SPOT[2:5, 3:9] = 1


def draw(path: Path, array: np.ndarray | None = None) -> Path:
    """Write a grey picture, or an array: smooth enough for JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(SIZE, 90, np.uint8) if array is None else array).save(path)
    return path


def draw_all(root: Path, pictures: str, masks: str = "") -> Path:
    for name in pictures.split():
        draw(root / name.replace("%20", " "))
    for name in masks.split():
        draw(root / name.replace("%20", " "), SPOT * 255)
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- Trees of every layout -------------------------------------------------------------------------------------------


def mvtec(root):
    return draw_all(
        root,
        "bottle/train/good/000.png bottle/test/good/000.png bottle/test/broken_large/000.png "
        "metal_nut/train/good/001.png metal_nut/test/good/003.png metal_nut/test/bent/003.png",
        "bottle/ground_truth/broken_large/000_mask.png metal_nut/ground_truth/bent/003_mask.png",
    )


def visa(root):
    draw_all(
        root,
        "pcb1/Data/Images/Normal/0001.JPG pcb1/Data/Images/Normal/0002.JPG pcb1/Data/Images/Anomaly/000.JPG",
    )
    draw(root / "pcb1/Data/Masks/Anomaly/000.png", SPOT * 3)  # VisA numbers the kinds of defect
    lines = (
        "object,split,label,image,mask",
        "pcb1,train,normal,pcb1/Data/Images/Normal/0001.JPG,",
        "pcb1,test,normal,pcb1/Data/Images/Normal/0002.JPG,",
        "pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png",
    )
    write(root / "split_csv" / "1cls.csv", "\r\n".join(lines))
    return root


def btad(root):
    return draw_all(
        root,
        "01/train/ok/0000.bmp 01/test/ok/0001.bmp 01/test/ko/0000.bmp",
        "01/ground_truth/ko/0000.png 01/ground_truth/ok/0001.png",
    )


def sdd(root):
    draw_all(root, "kos01/Part0.jpg kos01/Part1.jpg kos02/Part0.jpg", "kos01/Part1_label.bmp")
    for name in ("kos01/Part0_label.bmp", "kos02/Part0_label.bmp"):
        draw(root / name, SPOT * 0)
    return root


def dagm(root):
    draw_all(
        root,
        "Class1/Train/0001.PNG Class1/Train/0002.PNG Class1/Test/0003.PNG Class1/Test/0004.PNG",
        "Class1/Train/Label/0002_label.PNG Class1/Test/Label/0004_label.PNG",
    )
    write(root / "Class1/Test/Label/Labels.txt", "1\n3\t0\t0003.PNG\t0\t0\n4\t1\t0004.PNG\t0\t0004_label.PNG\n")
    return root


def isic(root):
    part = "ISBI2016_ISIC_Part1"
    return draw_all(
        root,
        f"{part}_Test_Data/ISIC_0000003.jpg {part}_Training_Data/ISIC_0000000.jpg",
        f"{part}_Test_GroundTruth/ISIC_0000003_Segmentation.png "
        f"{part}_Training_GroundTruth/ISIC_0000000_Segmentation.png",
    )


def polyps(root):
    return draw_all(root, "images/1.png images/2.png", "masks/1.png masks/2.png")


def clinicdb(root):
    return draw_all(root, "Original/1.tif Original/2.tif", "Ground%20Truth/1.tif Ground%20Truth/2.tif")


def tn3k(root):
    return draw_all(root, "test-image/0000.jpg trainval-image/0000.jpg", "test-mask/0000.jpg trainval-mask/0000.jpg")


def headct(root):
    draw_all(root, "head_ct/head_ct/000.png head_ct/head_ct/001.png")
    write(root / "labels.csv", "id, hemorrhage\n0,1\n1,0\n")
    return root


def yes_no(root):
    return draw_all(root, "yes/Y1.jpg no/1%20no.jpeg pred/pred0.jpg")


def folder(root):
    return draw_all(root, "good/a.png scratch/b.png dent/c.png", "ground_truth/scratch/b.png masks/dent/c_mask.png")


def meta(root):
    """As AdaCLIP writes it, for data with masks."""
    draw_all(root, "isic/test/good/a.png isic/test/bad/b.jpg isic/train/good/c.png", "isic/ground_truth/bad/b.png")

    def entry(path, mask="", **more):
        kind = path.split("/")[-2]
        return {
            "img_path": path,
            "mask_path": mask,
            "cls_name": "isic",
            "specie_name": kind,
            "anomaly": int(kind != "good"),
        } | more

    entries = {
        "train": {"isic": [entry("isic/train/good/c.png")]},
        "test": {"isic": [entry("isic/test/good/a.png"), entry("isic/test/bad/b.jpg", "isic/ground_truth/bad/b.png")]},
    }
    write(root / "meta.json", json.dumps(entries))
    return root


# Of each: how its folder may be called, the layout it is recognised as, whether it has masks, and its samples as
# (class, defect, picture): the split test, then the number of pictures for training.
TREES = [
    (
        mvtec,
        "x",
        "mvtec",
        [
            ("bottle", "broken_large", "bottle/test/broken_large/000.png"),
            ("bottle", "good", "bottle/test/good/000.png"),
            ("metal_nut", "bent", "metal_nut/test/bent/003.png"),
            ("metal_nut", "good", "metal_nut/test/good/003.png"),
        ],
        2,
    ),
    (
        visa,
        "x",
        "visa",
        [
            ("pcb1", "anomaly", "pcb1/Data/Images/Anomaly/000.JPG"),
            ("pcb1", "good", "pcb1/Data/Images/Normal/0002.JPG"),
        ],
        1,
    ),
    (btad, "x", "btad", [("01", "ko", "01/test/ko/0000.bmp"), ("01", "good", "01/test/ok/0001.bmp")], 1),
    (
        sdd,
        "x",
        "sdd",
        [
            ("electrical commutators", "good", "kos01/Part0.jpg"),
            ("electrical commutators", "defect", "kos01/Part1.jpg"),
            ("electrical commutators", "good", "kos02/Part0.jpg"),
        ],
        None,
    ),
    (dagm, "x", "dagm", [("Class1", "good", "Class1/Test/0003.PNG"), ("Class1", "defect", "Class1/Test/0004.PNG")], 2),
    (isic, "x", "isic", [("isic", "lesion", "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg")], 1),
    (
        polyps,
        "CVC-ColonDB",
        "colondb",
        [("colon", "polyp", "images/1.png"), ("colon", "polyp", "images/2.png")],
        None,
    ),
    (
        clinicdb,
        "CVC-ClinicDB",
        "clinicdb",
        [("ClinicDB", "polyp", "Original/1.tif"), ("ClinicDB", "polyp", "Original/2.tif")],
        None,
    ),
    (tn3k, "x", "tn3k", [("tn3k", "nodule", "test-image/0000.jpg")], 1),
    (
        headct,
        "x",
        "headct",
        [("headct", "hemorrhage", "head_ct/head_ct/000.png"), ("headct", "good", "head_ct/head_ct/001.png")],
        None,
    ),
    (yes_no, "Br35H-brain", "br35h", [("br35h", "good", "no/1 no.jpeg"), ("br35h", "tumor", "yes/Y1.jpg")], None),
    (
        folder,
        "x",
        "folder",
        [("object", "dent", "dent/c.png"), ("object", "good", "good/a.png"), ("object", "scratch", "scratch/b.png")],
        None,
    ),
    (meta, "x", "meta", [("isic", "good", "isic/test/good/a.png"), ("isic", "bad", "isic/test/bad/b.jpg")], 1),
]
MASKLESS = (headct, yes_no)
each_tree = pytest.mark.parametrize(
    "tree, name, layout, expected, train", TREES, ids=[tree.__name__ for tree, *_ in TREES]
)


@each_tree
def test_a_layout_is_recognised_and_read(tmp_path, tree, name, layout, expected, train):
    root = tree(tmp_path / name)
    assert find_layout(root) == (layout, root)
    samples = read_dataset(root)
    assert [(s.class_name, s.defect, s.image.relative_to(root).as_posix()) for s in samples] == expected
    assert [s.label for s in samples] == [int(defect != "good") for _, defect, _ in expected]
    for sample in samples:
        assert (sample.mask is not None) == (sample.label == 1 and tree not in MASKLESS)
        if sample.mask or not sample.label:
            np.testing.assert_array_equal(load_mask(sample), SPOT * sample.label)


@each_tree
def test_training_pictures_are_those_of_the_layout(tmp_path, tree, name, layout, expected, train):
    root = tree(tmp_path / name)
    if train is None:
        with pytest.raises(DatasetError, match=f"the layout {layout} has no split 'train', only test"):
            read_dataset(root, split="train")
    else:
        samples = read_dataset(root, split="train")
        assert len(samples) == train
        assert not {s.image for s in samples} & {s.image for s in read_dataset(root)}


@each_tree
def test_a_named_layout_gives_the_same_whatever_the_folder_is_called(tmp_path, tree, name, layout, expected, train):
    root = tree(tmp_path / "archive")
    samples = read_dataset(str(root), layout=layout)
    assert [s.image.relative_to(root).as_posix() for s in samples] == [path for *_, path in expected]


def test_every_data_set_of_the_paper_has_a_layout():
    industrial = {"mvtec", "visa", "mpdd", "btad", "sdd", "dagm", "dtd"}
    medical = {"isic", "colondb", "clinicdb", "tn3k", "headct", "brainmri", "br35h"}
    assert industrial | medical | {"meta", "folder"} == set(LAYOUTS)
    with pytest.raises(DatasetError, match="unknown layout 'mvtek': choose meta, visa, .*, folder"):
        read_dataset(".", layout="mvtek")


def test_a_named_layout_goes_before_those_that_fit_as_well(tmp_path):
    root = meta(tmp_path)
    assert [find_layout(root, layout)[0] for layout in (None, "mvtec", "mpdd")] == ["meta", "mvtec", "mpdd"]


# --- Variants of the layouts -----------------------------------------------------------------------------------------


def test_one_class_of_mvtec_is_a_data_set_and_so_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(mvtec(tmp_path) / "bottle")
    samples = read_dataset(".")
    assert [(s.class_name, s.image.as_posix()) for s in samples] == [
        ("bottle", "test/broken_large/000.png"),
        ("bottle", "test/good/000.png"),
    ]


def test_a_data_set_may_lie_alone_in_a_folder(tmp_path):
    root = btad(tmp_path / "btad" / "BTech_Dataset_transformed")
    draw(tmp_path / "__MACOSX" / "._x.png")
    assert find_layout(tmp_path) == ("btad", root)
    assert len(read_dataset(tmp_path)) == 2


def test_folders_that_could_be_anything_must_be_named(tmp_path):
    with pytest.raises(DatasetError, match="could be br35h, brainmri, or something else: name the layout"):
        read_dataset(yes_no(tmp_path / "a"))
    with pytest.raises(DatasetError, match="could be colondb, clinicdb, or something else: name the layout"):
        read_dataset(polyps(tmp_path / "b"))


def test_folders_unpacked_into_folders_of_their_own_name(tmp_path):
    pair = [f"ISBI2016_ISIC_Part1_Test_{part}" for part in ("Data", "GroundTruth")]
    draw_all(tmp_path, f"{pair[0]}/{pair[0]}/ISIC_1.jpg", f"{pair[1]}/{pair[1]}/ISIC_1_Segmentation.png")
    assert [s.defect for s in read_dataset(tmp_path)] == ["lesion"]
    (dagm(tmp_path / "d") / "Class1").rename(tmp_path / "inner")
    (tmp_path / "d" / "Class1").mkdir()
    (tmp_path / "inner").rename(tmp_path / "d" / "Class1" / "Class1")
    assert [s.defect for s in read_dataset(tmp_path / "d")] == ["good", "defect"]


def test_medical_data_without_masks_in_the_layout_of_mvtec(tmp_path):
    draw_all(tmp_path, "headct/test/good/1.png headct/test/defect/2.png")
    (tmp_path / "headct/train/good").mkdir(parents=True)
    defective, _ = read_dataset(tmp_path)
    assert (defective.label, defective.mask) == (1, None)
    with pytest.raises(DatasetError, match=r"2\.png: defective, but without a mask"):
        load_mask(defective)


@pytest.mark.parametrize("store", ["ground_truth", "masks"])
def test_masks_of_a_plain_folder_are_optional_and_may_lie_together(tmp_path, store):
    draw_all(tmp_path, "good/a.png scratch/b.jpg")
    assert [s.mask for s in read_dataset(tmp_path)] == [None, None]
    draw(tmp_path / store / "b.png", SPOT)
    assert [s.mask for s in read_dataset(tmp_path)] == [None, tmp_path / store / "b.png"]


def test_files_of_other_kinds_and_hidden_ones_are_passed_over(tmp_path):
    root = mvtec(tmp_path)
    for name in ("readme.txt", "bottle/license.txt", "bottle/test/good/Thumbs.db", "bottle/test/good/._000.png"):
        write(root / name, "no picture")
    (root / ".cache").mkdir()
    assert len(read_dataset(root)) == 4


def test_meta_json_in_the_spelling_of_anomalyclip(tmp_path):
    root = meta(tmp_path)
    content = json.loads((root / "meta.json").read_text())
    for item in content["test"]["isic"]:  # absolute names, but of files of this data set
        item["img_path"] = str(root.resolve() / item["img_path"])
        item["specie_name"] = ""
    write(root / "meta.json", json.dumps({"Train": {}, "Test": content["test"]}))
    assert [(s.image, s.defect) for s in read_dataset(root)] == [
        (root / "isic/test/good/a.png", "good"),
        (root / "isic/test/bad/b.jpg", "anomaly"),
    ]


def test_the_order_of_meta_json_is_kept(tmp_path):
    root = meta(tmp_path)
    content = json.loads((root / "meta.json").read_text())
    content["test"]["isic"] *= 2
    content["test"]["isic"].reverse()
    write(root / "meta.json", json.dumps(content))
    samples = read_dataset(root)
    assert [s.label for s in samples] == [1, 0, 1, 0]
    assert by_class(samples) == {"isic": samples}


def test_classes_can_be_called_by_other_words(tmp_path):
    samples = call(read_dataset(mvtec(tmp_path)), {"metal_nut": "steel nut"})
    assert {(s.class_name, s.called) for s in samples} == {("bottle", "bottle"), ("metal_nut", "steel nut")}
    with pytest.raises(DatasetError, match="words for cable, but the classes are bottle, metal_nut"):
        call(samples, {"cable": "wire"})


def test_classes_can_be_chosen(tmp_path):
    root = mvtec(tmp_path)
    assert {s.class_name for s in read_dataset(root, classes=["bottle"])} == {"bottle"}
    assert read_dataset(root, classes="bottle") == read_dataset(root, classes=("bottle",))
    assert len(read_dataset(root, classes=[])) == 4
    with pytest.raises(DatasetError, match="no class cable, metal nut: this data set has bottle, metal_nut"):
        read_dataset(root, classes=["bottle", "metal nut", "cable"])


@pytest.mark.parametrize(
    "class_name, expected",
    [("skin", "medical"), ("Brain_MRI", "medical"), ("ClinicDB", "medical"), ("metal_nut", "industrial")],
)
def test_the_prompts_for_a_class(class_name, expected):
    assert domain(class_name) == expected


@each_tree
def test_the_prompts_for_a_data_set(tmp_path, tree, name, layout, expected, train):
    medical = tree in (isic, polyps, clinicdb, tn3k, headct, yes_no, meta)
    assert {domain(class_name) for class_name, *_ in expected} == {"medical" if medical else "industrial"}


# --- What is wrong with a data set -----------------------------------------------------------------------------------


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


# --- Masks -----------------------------------------------------------------------------------------------------------


def rgba() -> Image.Image:
    alpha = np.zeros((*SIZE, 4), np.uint8)
    alpha[SPOT > 0] = 255
    return Image.fromarray(alpha)  # white where it is defective, see-through elsewhere


def numbers() -> Image.Image:
    """Two kinds of defect side by side, as numbers."""
    return Image.fromarray(SPOT * np.where(np.arange(SIZE[1]) < 6, 9, 1).astype(np.uint8))


def palette() -> Image.Image:
    """The same in colours, one much darker than the other."""
    image = numbers()
    image.putpalette([0, 0, 0, 0, 40, 0] + [0] * 21 + [200, 0, 0])
    return image


MASKS = {
    "0 and 255": lambda: Image.fromarray(SPOT * 255),
    "0 and 1": lambda: Image.fromarray(SPOT),
    "numbers": numbers,
    "one bit": lambda: Image.fromarray(SPOT > 0),
    "16 bits": lambda: Image.fromarray(SPOT.astype(np.uint16) * 65535),
    "16 bits, 0 and 1": lambda: Image.fromarray(SPOT.astype(np.uint16)),
    "floats": lambda: Image.fromarray(SPOT.astype(np.float32)),
    "colour": lambda: Image.fromarray(np.stack([SPOT * 0, SPOT * 255, SPOT * 0], -1)),
    "transparent": rgba,
    "palette": palette,
    "grey around": lambda: Image.fromarray((SPOT * 195 + 60).astype(np.uint8)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_any_kind_are_read(tmp_path, kind):
    image, path = draw(tmp_path / "a.png"), tmp_path / "mask.tif"
    MASKS[kind]().save(path)
    mask = load_mask(Sample(image, path, "x", "cut", 1))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, SPOT > 0)


def test_a_black_mask_is_empty(tmp_path):
    sample = Sample(draw(tmp_path / "a.png"), draw(tmp_path / "m.png", SPOT * 0), "x", "cut", 1)
    assert not load_mask(sample).any()


def test_masks_are_resized_as_torchvision_does_and_cut_at_one_half(tmp_path):
    random = np.random.default_rng(0)
    mask = (random.random((60, 91)) > 0.4).astype(np.uint8) * 255
    sample = Sample(draw(tmp_path / "a.png", mask), draw(tmp_path / "m.png", mask), "x", "cut", 1)
    pixels = torch.from_numpy(mask)[None, None].float() / 255
    for size in ((21, 35), (120, 200)):
        smooth = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0, 0].numpy()
        clear = np.abs(smooth - 0.5) > 0.01  # PIL rounds to 256 steps, twice
        np.testing.assert_array_equal(load_mask(sample, size)[clear], (smooth > 0.5)[clear])
        assert clear.mean() > 0.9
    np.testing.assert_array_equal(load_mask(sample, (60, 91)), mask > 0)
    assert load_mask(Sample(sample.image, None, "x", "good", 0), (3, 5)).shape == (3, 5)


def test_a_scratch_of_one_pixel_in_a_large_picture_leaves_no_crumbs(tmp_path):
    mask = np.zeros((1000, 1500), np.uint8)
    rows = np.arange(100, 900)
    mask[rows, rows + 300] = 255
    sample = Sample(draw(tmp_path / "a.png", mask), draw(tmp_path / "m.png", mask), "x", "scratch", 1)
    assert load_mask(sample).sum() == 800
    assert not load_mask(sample, (518, 518)).any()


def test_the_mask_of_a_turned_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held sideways: stored 10 x 14, seen 14 x 10
    Image.new("RGB", (10, 14)).save(tmp_path / "a.jpg", exif=exif)
    upright = Sample(tmp_path / "a.jpg", draw(tmp_path / "m.png", SPOT), "x", "cut", 1)
    assert load_mask(upright).shape == SIZE
    assert load_mask(Sample(tmp_path / "a.jpg", None, "x", "good", 0)).shape == SIZE
    turned = Image.fromarray(np.rot90(SPOT).copy())  # quarter a turn to the left, which the tag takes back
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_mask(Sample(tmp_path / "a.jpg", tmp_path / "turned.png", "x", "cut", 1)), SPOT)
    lying = Sample(tmp_path / "a.jpg", draw(tmp_path / "n.png", SPOT.T.copy()), "x", "cut", 1)
    with pytest.raises(DatasetError, match=r"n\.png is 10 x 14 pixels, its picture .*a\.jpg is 14 x 10"):
        load_mask(lying)


def test_pictures_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    sample = Sample(draw(tmp_path / "a.png"), draw(tmp_path / "m.png", SPOT), "x", "cut", 1)
    monkeypatch.setattr("tipsomaly.data.masks.MAX_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"m\.png: more than 0 megapixels"):
        load_mask(sample)
