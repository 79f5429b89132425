"""A small data set on disk in each of the layouts, and what is read of it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (10, 14)
"""height, width"""
SPOT = np.zeros(SIZE, np.uint8)
SPOT[2:5, 3:9] = 1


def png(wider: int = 0) -> bytes:
    """A grey PNG of 30 + `wider` x 20 pixels."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((30 + wider, 20)).save(file, "PNG")
    return file.getvalue()


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
