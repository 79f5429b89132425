"""The example scripts run as they are; the example pictures come in pairs, and nano tells the two apart."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from tipsomaly import Pipeline

EXAMPLES = Path(__file__).parent.parent / "examples"
ENTRIES = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
PAIRS = list(zip(ENTRIES[::2], ENTRIES[1::2], strict=True))  # the good one, the defective one


@pytest.mark.parametrize(
    "script, row",
    [
        ("evaluate_folder", "| **mean** "),
        ("train_and_test", "| decoupled, as trained "),
        ("normal_pictures", "image_auroc, in percent, after as many normal pictures"),
    ],
)
def test_the_scripts_run(tmp_path, monkeypatch, capsys, script, row):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    assert row in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_pictures_come_in_captioned_pairs_with_masks_and_licences():
    for good, defective in PAIRS:
        assert good["class_name"] == defective["class_name"]
        assert good["defect"] is good["mask"] is None
        with Image.open(EXAMPLES / defective["picture"]) as picture, Image.open(EXAMPLES / defective["mask"]) as mask:
            assert picture.size == mask.size
            assert 0 < np.asarray(mask).astype(bool).mean() < 0.2
        for entry in (good, defective):
            assert (EXAMPLES / entry["picture"]).is_file()
            assert entry["caption"] and entry["author"] and entry["source"]
            assert entry["licence"].startswith("CC0") or "drawn" in entry["caption"]
    there = [*(EXAMPLES / "pictures").iterdir(), *(EXAMPLES / "masks").iterdir()]
    listed = {entry[key] for entry in ENTRIES for key in ("picture", "mask")} - {None}
    assert listed == {f"{path.parent.name}/{path.name}" for path in there}
    assert sum((EXAMPLES / name).stat().st_size for name in listed) < 2e6


def test_only_the_defect_tells_the_photographs_of_a_pair_apart():
    for good, defective in PAIRS:
        if "drawn" in good["caption"]:
            continue
        one, other = (np.asarray(Image.open(EXAMPLES / entry["picture"]), float) for entry in (good, defective))
        mask = np.asarray(Image.open(EXAMPLES / defective["mask"])) > 0
        change = np.abs(one - other).mean(-1)
        far = distance_transform_edt(~mask) > 40
        assert change[mask].mean() > 12, defective["picture"]
        assert change[far].mean() < 1, defective["picture"]


def test_nano_ranks_each_defective_example_above_its_good_one_and_points_at_the_defect():
    """The peak of the map lies in the mask or within half a patch of it."""
    nano = Pipeline.from_pretrained()
    wrong = []
    for good, defective in PAIRS:
        pipe = nano.with_options(domain=good["domain"])
        fine, bad = (pipe(EXAMPLES / entry["picture"], entry["class_name"]) for entry in (good, defective))
        if bad.score <= fine.score:
            wrong.append(f"{defective['picture']}: {bad.score:.3f}, the good one {fine.score:.3f}")
        mask = np.asarray(Image.open(EXAMPLES / defective["mask"])) > 0
        peak = np.unravel_index(bad.anomaly_map.argmax(), mask.shape)
        if distance_transform_edt(~mask)[peak] > 7 * mask.shape[1] / pipe.image_size[0]:
            wrong.append(f"{defective['picture']}: the peak is beside the mask")
    assert not wrong
