"""Whole data sets: the same numbers as by hand, once, and in files that say what they are."""

import copy
import csv
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from sklearn.metrics import average_precision_score, roc_auc_score

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.cli.options import class_words
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.data.words import call
from tipsomaly.detection import scoring
from tipsomaly.errors import DatasetError, ImageError
from tipsomaly.studies.evaluation import Variant, evaluate, score_class
from tipsomaly.studies.paper import Paper, paper_results
from tipsomaly.studies.tables import METRICS
from tipsomaly.studies.worst import save_worst


@pytest.fixture(scope="module")
def pipe(golden):
    return golden.pipe.with_options(image_size=84)


@pytest.fixture(scope="module")
def samples(drawn):
    return read_dataset(drawn)


@pytest.fixture(scope="module")
def evaluation(pipe, samples):
    return evaluate(pipe, samples)


@pytest.fixture
def encoded(monkeypatch):
    """The number of pictures in each batch that goes through the vision tower."""
    batches, encode = [], Pipeline.encode_layers

    def counting(self, pixels, *arguments):
        batches.append(len(pixels))
        return encode(self, pixels, *arguments)

    monkeypatch.setattr(Pipeline, "encode_layers", counting)
    return batches


def test_metrics_equal_those_computed_directly(pipe, samples, evaluation):
    for result in evaluation.classes:
        group = [s for s in samples if s.class_name == result.class_name]
        results = pipe([s.image for s in group], result.class_name)
        labels = [s.label for s in group]
        maps = np.stack([scoring.anomaly_map(r.patch_map, (84, 84)) for r in results])
        masks = np.stack([load_mask(s, (84, 84)) for s in group])
        for strategy in scoring.STRATEGIES:
            scores, metrics = [r.strategies[strategy] for r in results], result.metrics(strategy)
            assert metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
            assert metrics["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
        assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-4)
        assert metrics["pixel_ap"] == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-4)
        worst = [m[mask].mean() - m[~mask].mean() if mask.any() else None for m, mask in zip(maps, masks, strict=True)]
        assert [p.localization for p in result.pictures] == pytest.approx(worst, abs=1e-5)
    assert len(evaluation.classes) == 2
    assert evaluation.mean()["aupro"] == pytest.approx(np.mean([c.pixels["aupro"] for c in evaluation.classes]))


def test_the_batch_size_does_not_matter(pipe, samples, evaluation):
    for one, other in zip(evaluation.classes, evaluate(pipe, samples, batch_size=3).classes, strict=True):
        assert one.metrics() == pytest.approx(other.metrics(), abs=1e-4)
        assert [p.image for p in one.pictures] == [p.image for p in other.pictures]


def test_variants_that_share_tokens_and_maps_score_as_alone(golden, pipe, samples):
    group = samples[:7]
    pipes = [pipe.with_options(mode=mode) for mode in ("fixed", "learned", "decoupled")]
    pipes.append(pipe.with_options(domain="medical"))
    averaged = pipe.with_options(top=0.05)
    variants = [*map(Variant, pipes), Variant(pipe, (0,)), Variant(pipe, (-1,)), Variant(averaged)]
    results = score_class(variants, group)()
    for pipeline, result in zip(pipes, results, strict=False):
        assert result.metrics() == pytest.approx(score_class([Variant(pipeline)], group)()[0].metrics(), abs=1e-6)
    assert results[2] == results[5]  # the last layer is the default
    assert results[1].pixels == results[2].pixels == results[3].pixels != results[0].pixels
    assert results[2].pictures[0].global_score != results[3].pictures[0].global_score
    [first] = pipe.encode_layers(next(pipe.pixels([group[0].image])), [0])
    expected = scoring.anomaly_probability(first.patches, pipe.prototypes("felt")[1], pipe.tips.config.temperature)
    assert results[4].pictures[0].local_score == pytest.approx(float(expected.max()), abs=1e-5)
    assert results[6].pictures[0].local_score == pytest.approx(averaged(group[0].image, "felt").local_score, abs=1e-5)
    assert results[6].pixels == results[5].pixels


def test_an_interrupted_evaluation_goes_on(pipe, samples, evaluation, tmp_path, encoded, monkeypatch):
    pixels = Pipeline.pixels

    def cut(self, images, batch_size):
        if "metal_nut" in str(images[0]):
            raise KeyboardInterrupt
        return pixels(self, images, batch_size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pipeline, "pixels", cut)
        evaluate(pipe, samples, output=tmp_path)
    assert encoded == [7]
    assert not (tmp_path / "results.json").exists()
    assert evaluate(pipe, samples, output=tmp_path).json() == evaluation.json()
    assert encoded == [7, 7]
    assert evaluate(pipe, samples, output=tmp_path, strategy="S1").per_class() == evaluation.per_class("S1")
    assert encoded == [7, 7]  # another strategy needs no new scores
    assert not list(tmp_path.rglob("*.part"))


def test_a_class_is_stored_as_soon_as_it_is_measured(pipe, samples, tmp_path, monkeypatch):
    pixels, stored = Pipeline.pixels, []

    def waiting(self, images, batch_size):
        """The second class begins; the first one is stored meanwhile."""
        if "metal_nut" in str(images[0]):
            until = time.monotonic() + 60
            while not stored and time.monotonic() < until:
                time.sleep(0.01)
                stored[:] = (tmp_path / "classes").glob("*.json")
        return pixels(self, images, batch_size)

    monkeypatch.setattr(Pipeline, "pixels", waiting)
    evaluate(pipe, samples, output=tmp_path)
    assert [path.name[:5] for path in stored] == ["felt-"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"label": 1', '"label": 0'),
        lambda text: text.replace('"global_score": 0.', '"global_score": NaN, "x": 0.', 1),
        lambda text: text.replace('"aupro"', '"pro"'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_class_is_computed_again(pipe, samples, evaluation, tmp_path, encoded, damage):
    felt = samples[:7]
    evaluate(pipe, felt, output=tmp_path)
    [stored] = (tmp_path / "classes").iterdir()
    whole = stored.read_text()
    stored.write_text(damage(whole))
    assert evaluate(pipe, felt, output=tmp_path).classes == evaluation.classes[:1]
    assert stored.read_text() == whole
    assert encoded == [7, 7]


def test_what_changed_is_computed_again(golden, pipe, drawn, tmp_path, encoded):
    root = tmp_path / "data"
    shutil.copytree(drawn, root)

    def run(pipeline=pipe) -> int:
        before = sum(encoded)
        evaluate(pipeline, read_dataset(root), output=tmp_path / "out")
        return sum(encoded) - before

    assert run() == 14
    os.utime(root / "felt" / "test" / "good" / "000.png", ns=(1, 1))
    assert run() == 7
    (root / "metal_nut" / "test" / "good" / "003.png").unlink()
    assert run() == 6
    assert run(pipe.with_options(sigma=1.0)) == 13
    learned = pipe.prompts
    assert run(pipe.with_options(prompts=LearnedPrompts(learned.normal + 1e-6, learned.abnormal))) == 13
    assert run() == 0


def test_classes_without_defects_are_not_available(pipe, samples):
    some = [s for s in samples if s.class_name == "felt" or not s.label]
    evaluation = evaluate(pipe, some)
    felt, nut = (evaluation.per_class()[name] for name in ("felt", "metal_nut"))
    assert set(nut.values()) == {None}
    assert None not in felt.values()
    assert evaluation.mean() == felt
    row = next(row for row in csv.DictReader(evaluation.csv().splitlines()) if row["class"] == "metal_nut")
    assert [row[name] for name in METRICS] == ["n/a"] * 8
    assert row["pictures"] == "4"
    assert row["defective"] == "0"
    lines = evaluation.markdown().splitlines()
    assert next(line for line in lines if "metal_nut" in line).count("n/a") == 8
    assert lines[-1].startswith("Not defined, and left out of the mean: image_auroc: metal_nut; image_ap: metal_nut")
    assert json.loads(evaluation.json())["classes"]["metal_nut"] == dict.fromkeys(METRICS)


def test_without_masks_there_are_image_metrics_only(pipe, samples, evaluation):
    bare = evaluate(pipe, [replace(s, mask=None) for s in samples])
    for name, metrics in bare.per_class().items():
        full = evaluation.per_class()[name]
        assert metrics == {m: full[m] if m.startswith("image") else None for m in METRICS}


def test_results_hold_the_numbers(pipe, samples, evaluation, tmp_path):
    evaluation.save(tmp_path)
    mean = evaluation.mean()
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(r["class"], r["pictures"], r["defective"]) for r in rows] == [
        ("felt", "7", "3"),
        ("metal_nut", "7", "3"),
        ("mean", "14", "6"),
    ]
    assert {name: float(rows[2][name]) for name in METRICS} == pytest.approx(mean, abs=1e-6)
    text = (tmp_path / "results.md").read_text()
    cells = [cell.strip() for cell in text.split("**mean**")[1].split("\n")[0].strip(" |").split("|")]
    assert cells == [f"{100 * mean[name]:.1f}" for name in METRICS]
    assert "paper" not in text
    assert text.startswith("decoupled prompts, domain industrial, 84 x 84 px, S5; 14 pictures, 6 defective; in percent")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["mean"] == mean
    assert content["settings"]["image_size"] == [84, 84]
    assert set(content["mean_by_strategy"]) == set(scoring.STRATEGIES)
    assert content["mean_by_strategy"]["S5"] == mean
    picture = content["pictures"]["felt"][0]
    assert picture["score"] == pytest.approx(pipe(picture["image"], "felt").score, abs=1e-5)


def test_the_papers_numbers_stand_beside_whole_data_sets_only(evaluation, samples):
    assert paper_results(samples) is None
    numbers = Paper("HeadCT", {"image_auroc": 0.123, "aupro_200": 0.4})
    [line] = [line for line in replace(evaluation, paper=numbers).markdown().splitlines() if "| HeadCT: " in line]
    assert "TIPS-L/14-HR, decoupled, S5: paper, not measured here" in line
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["12.3", *["-"] * 6, "40.0"]


def test_the_worst_mistakes_are_drawn(pipe, samples, evaluation, tmp_path):
    (tmp_path / "normal-9-old.png").touch()
    paths = save_worst(pipe, evaluation, samples, tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.name.rsplit("-", 1)[0].split("-")[:2] for path in paths] == [
        [kind, rank] for kind in ("normal", "missed", "misplaced") for rank in "12"
    ]
    normal = {(p.image, c.class_name): p.score("S5") for c in evaluation.classes for p in c.pictures if not p.label}
    image, class_name = max(normal, key=normal.get)
    assert f"{class_name}-good-{os.path.basename(image)[:3]}" in paths[0].name


def test_finished_classes_are_known_again_by_other_paths(pipe, drawn, samples, tmp_path, monkeypatch):
    evaluate(pipe, samples, output=tmp_path / "out")
    monkeypatch.chdir(drawn.parent)
    relative = read_dataset(drawn.name)
    again = evaluate(pipe, relative, output=tmp_path / "out")
    assert [p.image for c in again.classes for p in c.pictures] == [str(s.image) for s in relative]
    assert len(save_worst(pipe, again, relative, tmp_path / "worst", 1)) == 3


def test_what_cannot_be_evaluated_is_named(pipe, samples, tmp_path):
    with pytest.raises(ValueError, match="unknown strategy 'S6': choose S1, S2"):
        evaluate(pipe, samples, strategy="S6")
    with pytest.raises(ValueError, match="no pictures"):
        evaluate(pipe, [])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="broken.png"):
        evaluate(pipe, [samples[0], replace(samples[0], image=tmp_path / "broken.png")])


def test_other_words_for_a_class_make_other_sentences(pipe, samples, evaluation):
    felt = call(samples[:7], {"felt": "wool"})
    [result] = evaluate(pipe, felt).classes
    assert result.class_name == "felt"
    assert result.pictures[0].global_score == pytest.approx(pipe(felt[0].image, "wool").global_score, abs=1e-5)
    assert result.pictures[0].global_score != evaluation.classes[0].pictures[0].global_score
    assert result.pixels == evaluation.classes[0].pixels


@pytest.mark.parametrize("text", ["felt", "a=b=c", "felt=", "{", "x.json"])
def test_odd_words_for_classes_are_refused(tmp_path, monkeypatch, text, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text('{"felt": 3}')
    with pytest.raises(typer.Exit) as caught:
        class_words(text)
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_words_for_classes_are_read(tmp_path):
    (tmp_path / "w.json").write_text('{"01": "floor tile"}')
    assert class_words(str(tmp_path / "w.json")) == {"01": "floor tile"}
    assert class_words("01=floor_tile, 02=wood") == {"01": "floor tile", "02": "wood"}


def test_the_command(here, golden, drawn, tmp_path, evaluation):
    command = ["evaluate", drawn, "--model", golden.folder]
    options = ["--image-size", "84", "--worst", "1", "--gallery", "3", "--output", tmp_path / "out", "--class", "felt"]
    done = here(*command, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out" / "results.md").read_text()
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["classes"]["felt"] == pytest.approx(evaluation.per_class()["felt"], abs=1e-5)
    assert len(list((tmp_path / "out" / "worst").iterdir())) == 3
    assert [path.name for path in (tmp_path / "out" / "gallery").iterdir()] == ["felt.png"]


def test_scores_that_are_not_finite_are_refused(golden, drawn, tmp_path):
    pipe = copy.deepcopy(golden.pipe.with_options(image_size=56))
    with torch.no_grad():
        pipe.tips.vision_encoder.cls_token[0, 0, 0] = float("inf")
    with pytest.raises(DatasetError, match=r"\.png: its scores are not finite"):
        evaluate(pipe, read_dataset(drawn), output=tmp_path)
    assert not list(tmp_path.rglob("*.json"))
