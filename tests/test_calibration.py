"""Thresholds keep their promise, and serve only what they were made for."""

import json
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest

from tipsomaly import LearnedPrompts
from tipsomaly.detection.calibration import Calibration
from tipsomaly.errors import ModelError, TipsomalyError
from tipsomaly.studies.calibrate import calibrate


@pytest.fixture(scope="module")
def pipe(golden):
    return golden.pipe.with_options(image_size=56)


@pytest.fixture(scope="module")
def images(drawn):
    return sorted(drawn.rglob("test/*/*.png"))


@pytest.fixture(scope="module")
def results(pipe, images):
    return pipe(images, "nut")


@pytest.mark.parametrize("fpr", [0.01, 1 / 14, 0.29, 0.5])
def test_thresholds_are_the_smallest_that_few_enough_reach(pipe, images, results, fpr):
    found = calibrate(pipe, images, "nut", target_fpr=fpr)
    scores = np.array([r.score for r in results])
    allowed = {0.01: 0, 1 / 14: 1, 0.29: 4, 0.5: 7}[fpr]
    assert (scores >= found.image_threshold).sum() == allowed
    assert (scores >= np.nextafter(found.image_threshold, 0)).sum() == allowed + 1
    pixels = np.concatenate([r.anomaly_map.ravel() for r in results])
    assert (pixels >= found.pixel_threshold).mean() <= fpr
    assert (pixels >= found.pixel_threshold * (1 - 2**-13)).mean() > fpr
    assert found.pictures == 14
    whole = calibrate(pipe, images, "nut", target_fpr=fpr, map_by="pictures")
    peaks = np.array([r.anomaly_map.max() for r in results])
    assert (peaks >= whole.pixel_threshold).sum() == allowed
    assert (peaks >= np.nextafter(np.float32(whole.pixel_threshold), np.float32(0))).sum() == allowed + 1
    assert replace(whole, pixel_threshold=found.pixel_threshold) == found


def test_ties_are_all_below_the_threshold(pipe, images):
    found = calibrate(pipe, [images[0]] * 4, target_fpr=0.5)
    result = pipe.with_options(calibration=found)(images[0])
    assert not result.is_anomalous
    assert not result.mask(result.pixel_threshold).all()


def test_the_verdict(pipe, images, results, tmp_path):
    found = calibrate(pipe, images, "nut", target_fpr=0.3)
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found
    calibrated = pipe.with_options(calibration=tmp_path / "c.json")
    verdicts = [r.is_anomalous for r in calibrated(images, "nut")]
    assert sum(verdicts) == 4
    assert verdicts == [r.score >= found.image_threshold for r in results]
    assert {r.is_anomalous for r in results} == {None}
    compared = calibrated.compare(images[0], "nut")
    assert {mode: r.is_anomalous is None for mode, r in compared.items()} == {
        "fixed": True,
        "learned": True,
        "decoupled": False,
    }
    assert calibrated.with_options(sigma=1.0)(images[0], "bolt").is_anomalous is None


def test_other_settings_are_refused(pipe, images):
    found = calibrate(pipe, images[:2], "nut", target_fpr=0.5)
    learned = pipe.prompts
    for options, difference in (
        ({"image_size": 70}, r"image_size \[56, 56\], not \[70, 70\]"),
        ({"domain": "medical"}, "domain industrial, not medical"),
        ({"mode": "learned"}, "mode decoupled, not learned"),
        ({"sigma": 2.0}, "sigma 4.0, not 2.0"),
        ({"top": 0.01}, "top None, not 0.01"),
        ({"prompts": LearnedPrompts(learned.abnormal, learned.abnormal)}, "prompts"),
    ):
        with pytest.raises(ModelError, match=f"made with {difference}"):
            pipe.with_options(**options, calibration=found)
    older = {name: value for name, value in found.settings.items() if name != "top"}  # made before there was one
    assert pipe.with_options(calibration=replace(found, settings=older)).calibration
    with pytest.raises(ModelError, match="made with top None, not 0.01"):
        pipe.with_options(top=0.01, calibration=replace(found, settings=older))
    with pytest.raises(ModelError, match="for the class 'nut', not 'bolt'"):
        pipe.with_options(calibration=found)(images[0], "bolt")
    other = replace(found, settings={**found.settings, "model": "0" * 64})
    with pytest.raises(ModelError, match="made with model 000000000000, not"):
        pipe.with_options(calibration=other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image_threshold": 1}', "null", '{"image_threshold": NaN}', "\x00"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ModelError, match=r"c\.json: not a calibration") as caught:
        Calibration.load(tmp_path / "c.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="No such file"):
        Calibration.load(tmp_path / "none.json")


def test_numbers_that_are_none_are_refused(pipe, images, tmp_path):
    found = calibrate(pipe, images[:2], target_fpr=0.5)
    nowhere = replace(found, pixel_threshold=float("nan"))
    with pytest.raises(TipsomalyError, match="not finite"):
        nowhere.save(tmp_path / "c.json")
    (tmp_path / "c.json").write_text(json.dumps(asdict(nowhere)))
    with pytest.raises(ModelError, match="not a calibration"):
        Calibration.load(tmp_path / "c.json")
    for fpr in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            calibrate(pipe, images, target_fpr=fpr)
    with pytest.raises(ValueError, match="normal pictures"):
        calibrate(pipe, [])


def test_the_commands(here, golden, drawn, tmp_path):
    normals, options = drawn / "felt" / "test" / "good", ["--model", golden.folder, "--class-name", "felt"]
    done = here("calibrate", normals, *options, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: a false-positive rate of 0.01 takes at least 100 normal pictures; these are 4" in done.stderr
    done = here("detect", normals, *options, "--calibration", tmp_path / "calibration.json", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["is_anomalous"] for line in done.stdout.splitlines()] == [False] * 4
    done = here("detect", normals, *options, "--sigma", 1, "--calibration", tmp_path / "calibration.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this calibration was made with sigma 4.0, not 1.0\n"
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for path in sorted(normals.iterdir()):
            archive.write(path, path.name)
    done = here("calibrate", tmp_path / "good.zip", *options, "--output", tmp_path / "zipped")
    assert done.returncode == 0, done.stderr
    one, other = (Calibration.load(folder / "calibration.json") for folder in (tmp_path, tmp_path / "zipped"))
    assert one == other
