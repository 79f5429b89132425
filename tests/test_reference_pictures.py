"""Normal pictures with a model: from a folder to verdicts, and the commands."""

import json
import math

import numpy as np
import pytest
import torch

from tipsomaly import ImageError, ModelError
from tipsomaly.detection.memory import nearest, unit_tokens
from tipsomaly.detection.references import ReferenceOptions
from tipsomaly.errors import DatasetError


def squashed(deviations, farthest):
    """Logistic up to one half, from there on a logarithm that is 1 at `farthest`."""
    above = 0.5 + 0.5 * np.log(deviations / 6 + np.sqrt((deviations / 6) ** 2 + 1)) / math.asinh(farthest / 6)
    return np.where(deviations > 0, np.minimum(above, 1), 1 / (1 + np.exp(-deviations / 3)))


@pytest.fixture(scope="module")
def pipe(golden):
    return golden.pipe.with_options(image_size=56)


@pytest.fixture(scope="module")
def good(drawn):
    return sorted((drawn / "felt" / "test" / "good").glob("*.png"))


@pytest.fixture(scope="module")
def bad(drawn):
    return sorted((drawn / "felt" / "test" / "spot").glob("*.png"))


def test_a_folder_of_good_ones_finds_bad_ones(pipe, good, bad):
    alone = pipe(bad, "felt")
    known = pipe.with_options(reference=good[0].parent, reference_options=ReferenceOptions(target_fpr=0.3))
    results = known(bad, "felt")
    found = known.references("felt")
    assert found is known.references("felt") and found.pictures == 4
    assert {r.evidence for r in results} == {found.use} and {r.evidence for r in alone} == {"prompts"}
    assert [r.is_anomalous for r in results] == [r.score >= found.image_threshold for r in results]
    assert [r.p_value for r in results] == [found.p_value(r.score) for r in results]
    assert results[0].record()["p_value"] == results[0].p_value and "p_value" not in alone[0].record()
    # The memory of the pictures knows them; a spot is what it knows least.
    memory = pipe.with_options(reference=found.using("memory"))
    tokens = torch.cat([unit_tokens([pipe.encode(batch).patches]) for batch in pipe.pixels(good)])
    torch.testing.assert_close(found.memory.tokens, tokens.flatten(0, 2), atol=1e-5, rtol=0)
    for path in bad:
        [batch] = pipe.pixels([path])
        distances = nearest(unit_tokens([pipe.encode(batch).patches]), tokens.flatten(0, 2))
        deviations, far = (
            (found.scales.memory(x) - found.scales.peaks[0]).numpy() for x in (distances[0], torch.ones(()))
        )
        np.testing.assert_allclose(memory(path, "felt").patch_map, squashed(deviations, far), atol=1e-3)
    assert max(memory.references("felt").memory.distances(tokens).flatten()) < 1e-5


def test_references_are_made_saved_and_used_by_the_same_settings_alone(pipe, good, bad, tmp_path):
    options = ReferenceOptions(kind="subspace", layers=(-1, 0), turns=True)
    made = pipe.make_references(good, "felt", options)
    made.save(tmp_path / "felt.safetensors")
    known = pipe.with_options(reference=tmp_path / "felt.safetensors")
    direct = pipe.with_options(reference=good, reference_options=options)
    assert known(bad[0], "felt").score == pytest.approx(direct(bad[0], "felt").score, abs=1e-6)
    assert known.settings()["reference"] == made.digest()
    with pytest.raises(ModelError, match="of the class 'felt', not 'nut'"):
        known(bad[0], "nut")
    with pytest.raises(ModelError, match="made with sigma 4.0, not 1.0"):
        pipe.with_options(sigma=1.0, reference=tmp_path / "felt.safetensors")
    with pytest.raises(ModelError, match="made with top None, not 0.1"):
        pipe.with_options(top=0.1, reference=tmp_path / "felt.safetensors")
    assert known.with_options(sigma=1.0).reference is None
    assert direct.with_options(sigma=1.0).reference.source == good
    averaged, single = direct.with_options(top=0.25)(bad[0], "felt"), direct(bad[0], "felt")
    assert np.array_equal(averaged.patch_map, single.patch_map)
    assert averaged.local_score == pytest.approx(sum(sorted(single.patch_map.ravel())[-4:]) / 4)
    assert averaged.p_value == 1 / 5 and averaged.references.scores["both"][-1] < single.references.scores["both"][-1]
    compared = known.compare(bad[0], "felt")
    assert {name: result.evidence for name, result in compared.items()} == {
        **dict.fromkeys(("fixed", "learned", "decoupled"), "prompts"),
        **{"memory": "memory", "both": "both"},
    }


def test_bad_reference_pictures_are_named(pipe, good, bad, tmp_path):
    (tmp_path / "x.png").write_bytes(b"junk")
    with pytest.raises(ImageError, match=r"x\.png: not a picture"):
        pipe.with_options(reference=[*good, tmp_path / "x.png"])(bad[0], "felt")
    with pytest.raises(ModelError, match="the tower has blocks"):
        pipe.with_options(reference=good, reference_options=ReferenceOptions(layers=(99,)))(bad[0], "felt")
    with pytest.raises(ModelError, match="no normal pictures"):
        (tmp_path / "empty").mkdir()
        pipe.with_options(reference=tmp_path / "empty")
    with pytest.raises(ModelError, match="unknown evidence"):
        pipe.with_options(reference=good, evidence="hunch")
    with pytest.raises(ModelError, match="go with a reference"):
        pipe.with_options(evidence="memory")


@pytest.mark.parametrize("options", [{"keep_aspect": True}, {"tile": 56}])
def test_pictures_of_other_shapes_and_tiles_are_remembered(pipe, good, bad, options):
    known = pipe.with_options(**options, reference=good)
    result = known(bad[0], "felt")
    assert result.evidence == "both" and result.anomaly_map.shape == (result.height, result.width)
    again = [r.score for r in known(good, "felt")]
    assert max(again) < result.references.image_threshold  # each is in the memory now


def test_a_pile_scores_itself(pipe, good, bad):
    sources = [*good, b"junk", bad[0]]
    outcomes = list(pipe.stream(sources, "felt", errors="yield", together=True))
    assert [isinstance(outcome, ImageError) for outcome in outcomes] == [False] * 4 + [True, False]
    assert all("5 unlabelled pictures" in outcome.note and outcome.evidence == "both" for outcome in outcomes[:4])
    assert outcomes[5].score > max(outcome.score for outcome in outcomes[:4])
    with pytest.raises(ModelError, match="at least two"):
        list(pipe.stream(good[:1], "felt", together=True))
    with pytest.raises(ModelError, match="not with both"):
        pipe.with_options(reference=good).stream(good, "felt", together=True)


@pytest.fixture
def run(golden, capsys):
    """A command in this process: exit status, output, errors."""
    from typer.testing import CliRunner

    from tipsomaly.cli import app

    def invoke(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "--model", str(golden.folder), "--image-size", "56"])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return invoke


def test_good_ones_and_new_ones_take_one_command_each(run, good, bad, tmp_path):
    status, said, _ = run("reference", good[0].parent, "--class-name", "felt", "--output", tmp_path / "f.safetensors")
    assert status == 0
    assert "4 normal pictures" in said and "20.0% of normal pictures expected" in said
    new = ["detect", *bad, "--class-name", "felt", "--json"]
    by_file = run(*new, "--reference", tmp_path / "f.safetensors")
    by_folder = run(*new, "--reference", good[0].parent)
    assert by_file[:2] == by_folder[:2] and by_file[0] == 0
    assert {json.loads(line)["evidence"] for line in by_file[1].splitlines()} == {"both"}
    assert all(0.2 <= json.loads(line)["p_value"] <= 1 for line in by_file[1].splitlines())
    averaged = run(*new, "--reference", good[0].parent, "--top", "0.5")
    lines = [[json.loads(line) for line in done[1].splitlines()] for done in (averaged, by_folder)]
    assert all(a["local_score"] < b["local_score"] for a, b in zip(*lines, strict=True)) and len(lines[0]) == len(bad)
    memory = run(*new, "--reference", good[0].parent, "--evidence", "memory")
    assert memory[1] != by_file[1] and "memory: as asked for" in memory[2]
    assert run(*new, "--mutual")[0] == 0
    values = ("--readout", "values", "--class-name", "felt")
    assert run("reference", good[0], *values, "--output", tmp_path / "v.safetensors")[0] == 0
    assert run("detect", bad[0], *values, "--reference", tmp_path / "v.safetensors")[0] == 0
    assert run(*new, "--evidence", "memory")[0] == 2
    with pytest.raises(ModelError, match="no such file of references"):
        run(*new, "--reference", tmp_path / "none.safetensors")


def test_evaluation_with_normal_pictures(run, drawn, tmp_path):
    status, said, _ = run("evaluate", drawn, "--reference", drawn / "felt" / "test" / "good", "--output", tmp_path)
    assert status == 0 and "metal_nut" in said
    for name in ("felt", "metal_nut"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for part in ("test", "ground_truth"):
            (folder / part).symlink_to(drawn / name / part)
        (folder / "train").mkdir()
        (folder / "train" / "good").symlink_to(drawn / name / "test" / "good")
    shots = ["evaluate", tmp_path / "data", "--output", tmp_path / "out", "--seeds", "2"]
    assert run(*shots, "--shots", 1, 2)[0] == 0
    content = json.loads((tmp_path / "out" / "shots.json").read_text())
    assert {name: list(by) for name, by in content["values"]["felt"].items()} == {
        "prompts": ["0"],
        "memory": ["1", "2"],
        "both": ["1", "2"],
    }
    assert len(content["values"]["metal_nut"]["both"]["2"]) == 2
    # The pictures of a draw are tested on here, and the memory of four knows all normal ones.
    assert run(*shots, "--shots", 4)[0] == 0
    content = json.loads((tmp_path / "out" / "shots.json").read_text())
    assert content["values"]["felt"]["memory"]["4"][0]["image_auroc"] == 1
    assert (tmp_path / "out" / "shots.png").stat().st_size > 1000
    assert "± 0.0" in (tmp_path / "out" / "shots.md").read_text()
    with pytest.raises(DatasetError, match="4 normal pictures to draw 5 from"):
        run(*shots, "--shots", 5)
