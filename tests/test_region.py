"""A region of interest: nothing outside changes any number, and what lies inside is still found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tipsomaly import ImageError, ModelError, Pipeline
from tipsomaly.cli import app
from tipsomaly.data.interest import RegionOfInterest
from tipsomaly.detection.leave_one_out import turn
from tipsomaly.detection.references import References
from tipsomaly.errors import OptionError
from tipsomaly.studies.calibrate import calibrate

EXAMPLES = Path(__file__).parent.parent / "examples"
DEFECTIVE, GOOD = (EXAMPLES / "pictures" / f"concrete-{name}.jpg" for name in ("defect", "good"))
MASK = EXAMPLES / "masks" / "concrete-defect.png"


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained(image_size=224)


def picture(path=DEFECTIVE):
    return np.array(Image.open(path).convert("RGB"))


def disc(size=640, x=0.5, y=0.5, radius=0.4):
    rows, columns = np.indices((size, size)) / size
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


@pytest.mark.parametrize("options", [{}, {"tile": 300}, {"keep_aspect": True}, {"top": 0.01}, {"prompts": "dapo"}])
def test_what_lies_outside_changes_no_number(pipe, options):
    region = disc(x=0.4, y=0.55) & ~disc(x=0.3, y=0.4, radius=0.1)
    scored = pipe.with_options(roi=region, **options)
    image, noise = picture(), np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    one, other = (scored(np.where(region[..., None], image, outside), "concrete") for outside in (image, noise))
    assert one.record() == other.record() and one.strategies == other.strategies
    np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    np.testing.assert_array_equal(one.spatial_token, other.spatial_token)
    assert one.anomaly_map.shape == (640, 640) and not one.anomaly_map[~region].any()
    assert one.anomaly_map[region].max() > 0.3


def test_a_defect_counts_inside_and_not_outside(pipe):
    mask = np.array(Image.open(MASK)) > 0
    rows, columns = mask.nonzero()
    around = np.zeros_like(mask)
    around[rows.min() - 80 : rows.max() + 80, columns.min() - 80 : columns.max() + 80] = True
    inside, outside = (pipe.with_options(roi=roi)(DEFECTIVE, "concrete") for roi in (around, ~around))
    good = pipe.with_options(roi=~around)(GOOD, "concrete")
    assert inside.local_score > 0.8
    assert inside.local_score > outside.local_score + 0.3 and inside.score > outside.score + 0.5
    assert outside.score == pytest.approx(good.score, abs=0.15)  # the same surface but for JPEG's noise
    assert mask[np.unravel_index(inside.anomaly_map.argmax(), mask.shape)]


def test_a_box_is_the_cut_picture_put_back(pipe):
    box = np.zeros((640, 640), bool)
    box[100:500, 50:630] = True
    result, cut = pipe.with_options(roi=box)(DEFECTIVE), pipe(picture()[100:500, 50:630])
    assert (result.score, result.width, result.height) == (cut.score, 640, 640)
    np.testing.assert_array_equal(result.anomaly_map[100:500, 50:630], cut.anomaly_map)
    [found, *_], [there, *_] = result.regions(0.5), cut.regions(0.5)
    assert found.area == there.area
    assert found.box == tuple(np.add(there.box, (50, 100, 50, 100)))


def test_the_maps_of_the_device_and_of_the_cpu_agree(pipe):
    scored = pipe.with_options(roi=disc(radius=0.3))
    [eager], lazy = scored.stream([DEFECTIVE], maps=True), scored(DEFECTIVE)
    np.testing.assert_allclose(eager.anomaly_map, lazy.anomaly_map, atol=1e-6)


def test_kinds_are_said_where_the_region_lies(pipe):
    box = np.zeros((640, 640), bool)
    box[200:, 200:] = True
    result = pipe.with_options(prompts="dapo", mode="decoupled", roi=box)(DEFECTIVE, "concrete")
    cut = pipe.with_options(prompts="dapo", mode="decoupled")(picture()[200:, 200:], "concrete")
    assert result.kinds == cut.kinds
    assert [r.kind for r in result.regions(0.3)] == [r.kind for r in cut.regions(0.3)]


def test_a_region_is_scaled_to_pictures_of_the_same_proportions():
    region = RegionOfInterest.of(disc(100))
    assert region.place(50, 50).inside.mean() == pytest.approx(region.place(400, 400).inside.mean(), abs=0.02)
    with pytest.raises(ImageError, match=r"^100 x 60 pixels; the region of interest is of pictures like 100 x 100$"):
        region.place(100, 60)
    dot = np.zeros((1000, 1000), bool)
    dot[1, 1] = True
    with pytest.raises(ImageError, match="nothing is left"):
        RegionOfInterest.of(dot).place(10, 10)


def test_a_picture_of_other_proportions_is_one_line_and_stops_no_other(pipe, tmp_path):
    Image.new("RGB", (90, 60)).save(tmp_path / "wide.png")
    results = pipe.with_options(roi=disc(64)).stream([tmp_path / "wide.png", DEFECTIVE], errors="yield")
    first, second = results
    assert str(first).startswith(f"{tmp_path / 'wide.png'}: 90 x 60 pixels; the region of interest")
    assert second.score > 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_each_patch_has_a_speaker_that_touches_the_region(seed, h, w, height, width):
    inside = np.random.default_rng(seed).random((height, width)) < 0.05
    inside[0, 0] = True
    place = RegionOfInterest.of(inside).place(width, height)
    speakers = place.speakers((h, w)).numpy()
    rows, columns = place.inside.nonzero()
    touched = np.zeros((h, w), bool)  # the patch that holds a pixel's centre touches
    touched[
        ((rows + 0.5) * h / place.inside.shape[0]).astype(int),
        ((columns + 0.5) * w / place.inside.shape[1]).astype(int),
    ] = True
    own = speakers == np.arange(h * w).reshape(h, w)
    assert own[touched].all()
    assert (own.ravel()[speakers.ravel()]).all()


def test_outside_is_painted_with_the_nearest_colour_inside():
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    inside = np.zeros((3, 3), bool)
    inside[0, 0] = inside[2, 2] = True
    found = np.asarray(RegionOfInterest.of(inside).place(3, 3).cut(Image.fromarray(pixels)))
    np.testing.assert_array_equal(found[0, 1], pixels[0, 0])
    np.testing.assert_array_equal(found[2, 1], pixels[2, 2])


def test_small_regions_are_left_out_and_scores_stay(pipe):
    every, large = pipe(DEFECTIVE, "concrete"), pipe.with_options(min_area=2000)(DEFECTIVE, "concrete")
    threshold = float(np.quantile(every.anomaly_map, 0.8))
    assert large.score == every.score
    kept = [region for region in every.regions(threshold) if region.area >= 2000]
    assert 0 < len(kept) < len(every.regions(threshold))
    assert large.regions(threshold) == kept
    assert large.mask(threshold).sum() == sum(region.area for region in kept)


def test_masks_polygons_and_what_is_ignored(tmp_path):
    Image.fromarray(disc(64)).save(tmp_path / "roi.png")
    corners = [[[0, 0], [63, 0], [63, 31], [0, 31]]]
    (tmp_path / "top.json").write_text(json.dumps({"size": [64, 64], "polygons": corners}))
    found = RegionOfInterest.of(tmp_path / "roi.png", tmp_path / "top.json").mask
    np.testing.assert_array_equal(found, disc(64) & (np.arange(64)[:, None] > 31))
    np.testing.assert_array_equal(RegionOfInterest.of(None, disc(64)).mask, ~disc(64))


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"size": [64, 64]}', "not polygons"),
        ('{"size": [64, 1e9], "polygons": []}', "its size cannot be used"),
        ('{"size": [64, 64], "polygons": [[[1, 2], [3, 4]]]}', "three points or more"),
        ('{"size": [64, 64], "polygons": [[[1, 2], [3, NaN], [4, 5]]]}', "three points or more"),
        ("[" * 5000, "not polygons"),
        ('{"size": [64, 64], "polygons": []}', "no pixel is left"),
    ],
)
def test_polygons_that_cannot_be_used_are_one_line(tmp_path, content, said):
    (tmp_path / "roi.json").write_text(content)
    with pytest.raises(OptionError, match=said) as caught:
        RegionOfInterest.of(tmp_path / "roi.json")
    assert "\n" not in str(caught.value)


def test_masks_that_cannot_be_used_are_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for roi, ignore, said in (
        (tmp_path / "gone.png", None, "gone.png"),
        (tmp_path / "text.png", None, "cannot be read as a picture"),
        (tmp_path / "gone.json", None, "No such file"),
        (np.zeros((4, 4), np.uint8), None, "a bool array"),
        (disc(64), disc(32), "64 x 64 and 32 x 32"),
        (disc(64), disc(64), "no pixel is left"),
    ):
        with pytest.raises(OptionError, match=said):
            RegionOfInterest.of(roi, ignore)
    with pytest.raises(OptionError, match="the smallest area"):
        Pipeline.from_pretrained(min_area=-1)


def test_a_calibration_is_of_its_region(pipe, tmp_path):
    scored = pipe.with_options(roi=disc())
    known = calibrate(scored, [GOOD], "concrete")
    assert scored.with_options(calibration=known)(DEFECTIVE, "concrete").is_anomalous
    for other in (pipe, pipe.with_options(roi=disc(radius=0.3))):
        with pytest.raises(ModelError, match="this calibration was made with roi"):
            other.with_options(calibration=known)
    inside = scored(GOOD, "concrete").anomaly_map[disc()]
    assert np.mean(inside >= known.pixel_threshold) == pytest.approx(known.target_fpr, abs=0.002)


def test_references_remember_nothing_outside(pipe):
    region, noise = disc(), np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    made: list[References] = []
    for outside in (picture(GOOD), noise):
        normal = np.where(region[..., None], picture(GOOD), outside)
        made.append(pipe.with_options(roi=region).make_references([normal, normal // 2], "concrete"))
    one, other = made
    assert one.digest() == other.digest()
    found = pipe.with_options(roi=region, reference=one, evidence="memory")(DEFECTIVE, "concrete")
    assert found.p_value == pytest.approx(1 / 3)
    with pytest.raises(ModelError, match="made with roi"):
        pipe.with_options(reference=one)


def test_turned_tokens_have_the_same_speakers():
    from tipsomaly.detection.reference_detector import _Seen

    region = RegionOfInterest.of(disc(20, x=0.3, y=0.2, radius=0.2))
    place = region.place(20, 20)
    grid = (3, 4)
    speakers = place.speakers(grid)
    tokens = torch.arange(12.0).view(*grid, 1)
    seen = _Seen(tokens, torch.zeros(2), tokens[..., 0])
    seen.turned = [(k, turn(tokens.movedim(2, 0), k).movedim(0, 2)) for k in range(8)]
    spoken = seen.spoken_by(speakers)
    np.testing.assert_array_equal(spoken.tokens[..., 0], speakers)
    for k, copy in spoken.turned:
        np.testing.assert_array_equal(copy[..., 0], turn(speakers, k))


def test_exports_and_evaluations_refuse_a_region(pipe, tmp_path):
    from tipsomaly.detection.export import export

    scored = pipe.with_options(roi=disc())
    with pytest.raises(OptionError, match="no region of interest"):
        export(scored, tmp_path / "out", class_names=["concrete"])
    with pytest.raises(OptionError, match="whole pictures"):
        next(scored.pixels([DEFECTIVE]))


def test_the_commands_take_a_region(tmp_path):
    Image.fromarray(disc()).save(tmp_path / "roi.png")
    common = ["--class-name", "concrete", "--image-size", "224", "--roi", str(tmp_path / "roi.png")]
    run = CliRunner().invoke
    assert run(app, ["calibrate", str(GOOD), *common, "--output", str(tmp_path)]).exit_code == 0
    assert run(app, ["reference", str(GOOD), *common, "--output", str(tmp_path / "r.safetensors")]).exit_code == 0
    more = ["--calibration", str(tmp_path / "calibration.json"), "--json", "--min-area", "50"]
    found = run(app, ["detect", str(DEFECTIVE), *common, *more])
    assert found.exit_code == 0 and json.loads(found.stdout)["is_anomalous"]
    more = ["--reference", str(tmp_path / "r.safetensors"), "--ignore", str(tmp_path / "roi.png")]
    refused = run(app, ["detect", str(DEFECTIVE), *common, *more])
    assert refused.exit_code != 0
