"""Verdicts from a few good pictures: made on the page, and of the bundled examples."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tipsomaly import Calibration, Pipeline
from tipsomaly.service import verdict
from tipsomaly.service.cards import score_card
from tipsomaly.service.examples import Examples
from tipsomaly.service.space import Space
from tipsomaly.service.verdict import Bundled

EXAMPLES = Path(__file__).parent.parent / "examples"
PICTURES = EXAMPLES / "pictures"
SETTINGS = ("tile", "industrial", "nano / industrial")


@pytest.fixture(scope="module")
def space():
    return Space()


@pytest.fixture(scope="module")
def goods(tmp_path_factory):
    """Parts of the good tiles."""
    folder = tmp_path_factory.mktemp("goods")
    picture = Image.open(PICTURES / "tile-good.jpg")
    for i in range(5):
        picture.crop((40 * i, 30 * i, 40 * i + 300, 30 * i + 300)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def calibration(space, goods):
    return space.calibrate(goods, *SETTINGS, 0.2)


def test_good_pictures_give_the_thresholds_of_the_command(calibration, goods):
    scores = sorted(r.score for r in Pipeline.from_pretrained()(goods, "tile", batch_size=8))
    assert calibration.scores == pytest.approx(scores, abs=1e-5)
    assert sum(score >= calibration.image_threshold for score in calibration.scores) == 1  # a fifth of five
    assert (calibration.pictures, calibration.class_name, calibration.target_fpr) == (5, "tile", 0.2)


def test_the_verdict_is_that_of_the_downloaded_file(space, calibration, tmp_path):
    calibration.save(tmp_path / "calibration.json")
    pipeline = Pipeline.from_pretrained(calibration=Calibration.load(tmp_path / "calibration.json"))
    for name in ("tile-defect.jpg", "tile-good.jpg"):
        found = space.inspect(PICTURES / name, *SETTINGS, calibration)
        expected = pipeline(PICTURES / name, "tile")
        assert found.result.is_anomalous is expected.is_anomalous is (found.result.score >= calibration.image_threshold)
        (row,) = space.batch([PICTURES / name], *SETTINGS, calibration)
        assert row.result.is_anomalous is expected.is_anomalous
        assert found.result.pixel_threshold == found.shown.pixel_threshold == calibration.pixel_threshold


def test_the_spaces_own_files_come_before_the_bundled_pictures(calibration, tmp_path):
    calibration.save(tmp_path / "calibration.json")
    space = Space(calibrations=[tmp_path / "calibration.json"])
    assert Bundled(space, Examples(EXAMPLES)).calibration(PICTURES / "tile-good.jpg", *SETTINGS) is None
    found = space.inspect(PICTURES / "tile-good.jpg", *SETTINGS)
    assert found.calibration == calibration and "of 5 good pictures" in verdict.card(found)
    other = space.inspect(PICTURES / "tile-good.jpg", *SETTINGS, replace(calibration, class_name="nut"))
    assert other.calibration == calibration and "do not serve here" in verdict.card(other)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("wood", *SETTINGS[1:]), "of the class 'tile'"),
        (("tile", "medical", SETTINGS[2]), "domain industrial, not medical"),
        (("tile", "industrial", "nano / medical"), "made with prompts"),
    ],
)
def test_good_pictures_of_something_else_give_no_verdict(space, calibration, settings, reason):
    found = space.inspect(PICTURES / "tile-good.jpg", *settings, calibration)
    assert found.result.is_anomalous is found.calibration is None
    assert reason in found.unused
    assert "do not serve here" in verdict.card(found)


def test_good_pictures_that_cannot_be_used_are_named(space, goods, tmp_path, monkeypatch):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^broken\.png cannot be used: "):
        space.calibrate([*goods, broken], *SETTINGS, 0.01)
    with pytest.raises(ValueError, match="choose 5 to 20 good pictures; these are 4"):
        space.calibrate(goods[:4], *SETTINGS, 0.01)
    monkeypatch.setattr("tipsomaly.service.space.MAX_GOOD", 5)
    with pytest.raises(ValueError, match="choose 5 to 5 good pictures; these are more"):
        space.calibrate([*goods, goods[0]], *SETTINGS, 0.01)


def test_the_card_says_the_verdict_and_what_it_is_worth(space, calibration):
    low = replace(calibration, scores=(0.01, 0.02, 0.03, 0.04, 0.05), image_threshold=0.045)
    found = space.inspect(PICTURES / "tile-defect.jpg", *SETTINGS, low)
    card = score_card(found)
    assert ">Defective<" in card
    assert "Above 5 of 5 good pictures; defective above 0.045" in card
    assert card.count('<i class="good" style') == 5
    (left,) = re.findall(r'class="here anomalous" style="left:(.*?)%', card)
    assert float(left) == pytest.approx(found.result.score * 50, abs=0.01)
    assert "just above all but 1 of 5 good pictures: of others like them 33.3\xa0% are expected" in card
    fifteen = Calibration(1.0, 0.5, "tile", 0.01, 15, {}, tuple(i / 15 for i in range(15)))
    said = verdict.trust(fifteen)
    assert f"{100 / 16:.1f}\xa0% are expected" in said and f"at most {100 * (1 - 0.05 ** (1 / 15)):.1f}\xa0%" in said
    assert "To expect 1\xa0% takes 99 good pictures" in said


def test_the_command_is_quoted(calibration):
    words = verdict.command(calibration, *SETTINGS[1:])
    assert words.endswith("--model nano --prompts industrial --domain industrial --class-name tile")


def test_examples_are_known_by_their_content_and_judged_by_other_products(space, goods, tmp_path):
    examples, asked = Examples(EXAMPLES), []
    renamed = tmp_path / "x"
    renamed.write_bytes((PICTURES / "tile-defect.jpg").read_bytes())
    example = examples.find(renamed)
    assert (example.picture.name, example.mask.name) == ("tile-defect.jpg", "tile-defect.png")
    assert examples.find(goods[0]) is None

    class Spied:
        def is_calibrated(self, *settings):
            return False

        def calibrate(self, files, *settings):
            asked.append(([file.name for file in files], settings))
            return object()

    bundled = Bundled(Spied(), examples)
    assert bundled.calibration(renamed, *SETTINGS) is bundled.calibration(renamed, *SETTINGS) is not None
    ((names, settings),) = asked
    assert settings == (*SETTINGS, 0.01)
    assert len(names) == 10 and all("good" in name or name[-5] == "2" for name in names)
    assert "tile-good.jpg" not in names
    for other in (("wood", *SETTINGS[1:]), ("tile", "medical", SETTINGS[2]), ("tile", "industrial", "tips-l14-hr / x")):
        assert bundled.calibration(renamed, *other) is None
    assert bundled.calibration(goods[0], *SETTINGS) is None
