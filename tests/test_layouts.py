"""Data sets are recognised and read, whatever their folder is called."""

import json

import numpy as np
import pytest
from trees import (
    MASKLESS,
    SPOT,
    btad,
    clinicdb,
    dagm,
    draw,
    draw_all,
    each_tree,
    headct,
    isic,
    meta,
    mvtec,
    polyps,
    tn3k,
    write,
    yes_no,
)

from tipsomaly.data.layouts import LAYOUTS, find_layout, read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import by_class
from tipsomaly.data.words import call, domain
from tipsomaly.errors import DatasetError


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
