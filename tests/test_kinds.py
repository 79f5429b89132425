"""The kinds of defects by what a data set calls them."""

from pathlib import Path

import pytest
from PIL import Image

from tipsomaly.data.kinds import MPDD, MVTEC, VISA, all_kinds, kind, kinds, of_one_kind
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.samples import Sample


def sample(class_name: str, defect: str, label: int = 1) -> Sample:
    return Sample(Path("x.png"), None, class_name, defect, label)


@pytest.mark.parametrize(
    "class_name, defect, expected",
    [
        ("cable", "cut_inner_insulation", ("cut",)),
        ("pill", "faulty_imprint", ("faulty imprint",)),
        ("screw", "manipulated_front", ("bent",)),
        ("tubes", "flattening", ("flattening",)),
        ("metal_plate", "total_rust", ("rust",)),
        ("candle", "wax melded out of the candle", ("melded",)),
        ("fryum", "different colour spot,small scratches", ("spot", "scratch")),
        ("own parts", "manipulated_front", ("manipulated front",)),  # elsewhere a word means itself
        ("own parts", "Deep-Scratch, left", ("deep scratch, left",)),
        ("own parts", "_", ("anomaly",)),
    ],
)
def test_a_folder_or_label_has_a_kind(class_name, defect, expected):
    assert kinds(sample(class_name, defect)) == expected


def test_normal_pictures_have_none_and_pictures_with_several_labels_are_left_out():
    normal, spot, both = (
        sample("fryum", "good", 0),
        sample("fryum", "burnt"),
        sample("fryum", "burnt,similar colour spot"),
    )
    assert kinds(normal) == ()
    assert [kind(s) for s in (normal, spot, both)] == ["", "burnt", "burnt"]
    assert of_one_kind([normal, spot, both]) == [normal, spot]
    assert all_kinds([normal, spot, both]) == ("burnt", "spot")


def test_no_name_of_a_data_set_has_two_kinds():
    for table, count in ((MVTEC, 20), (VISA, 18), (MPDD, 7)):
        names = [name for names in table.kinds.values() for name in names]
        assert len(names) == len(set(names))
        assert len(table.kinds) == count


def test_visa_gives_the_labels_of_its_table(tmp_path):
    root = tmp_path / "visa"
    rows, labels = ["object,split,label,image,mask"], ["image,label,mask"]
    for name, label in (("000", "scratch,melt"), ("001", "bent"), ("002", "")):
        image, mask = f"pcb1/Data/Images/Anomaly/{name}.JPG", f"pcb1/Data/Masks/Anomaly/{name}.png"
        for path in (image, mask):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 1).save(root / path)
        rows.append(f"pcb1,test,anomaly,{image},{mask}")
        labels.append(f'{image},"{label}",{mask}')
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows))
    assert [s.defect for s in read_dataset(root)] == ["anomaly"] * 3
    (root / "pcb1" / "image_anno.csv").write_text("\n".join(labels))
    samples = read_dataset(root)
    assert [s.defect for s in samples] == ["scratch,melt", "bent", "anomaly"]
    assert [kinds(s) for s in samples] == [("scratch", "melt"), ("bent",), ("anomaly",)]
