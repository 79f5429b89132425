"""Every table of the ablation measures what its title says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.detection.scoring import anomaly_probability
from tipsomaly.errors import ModelError
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.direct import Direct
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.studies import ablation, ablation_methods, ablation_readouts
from tipsomaly.studies.evaluation import Variant, evaluate, score_class
from tipsomaly.studies.paper import published
from tipsomaly.studies.training import Features, shuffled, train_prompts


@pytest.fixture(scope="module")
def pipe(golden):
    return golden.pipe.with_options(image_size=56)


@pytest.fixture(scope="module")
def studies(pipe, drawn):
    return ablation.ablate(pipe, read_dataset(drawn), read_dataset(drawn, classes=["felt"]), epochs=2)


def test_rows(studies):
    assert {name: list(study.rows) for name, study in studies.items()} == {
        "2a": ["fixed", "learned", "decoupled"],
        "2b": ["local", "global", "both"],
        "2c": ["S1", "S2", "S3", "S4", "S5"],
        "6": ["industrial", "medical", "object-agnostic"],
        "7": ["block 3 of 3", "blocks 2, 3 of 3", "blocks 1, 2, 3 of 3"],
        "figure3": ["1 token", "2 tokens", "4 tokens", "8 tokens", "16 tokens"],
    }


def test_rows_agree_with_an_evaluation_of_their_own(studies, pipe, drawn):
    samples = read_dataset(drawn)
    for study, row, options in (
        ("2a", "fixed", {"mode": "fixed"}),
        ("2a", "learned", {"mode": "learned"}),
        ("6", "medical", {"domain": "medical"}),
    ):
        expected = evaluate(pipe.with_options(**options), samples).mean()
        assert studies[study].rows[row] == pytest.approx(expected, abs=1e-6)
    own = evaluate(pipe, samples)
    for study, row in (("2a", "decoupled"), ("6", "industrial"), ("7", "block 3 of 3")):
        assert studies[study].rows[row] == pytest.approx(own.mean(), abs=1e-6)
    for strategy, metrics in studies["2c"].rows.items():
        assert metrics == {name: own.mean(strategy)[name] for name in ("image_auroc", "image_ap", "image_f1max")}


def test_recipes_of_training_differ(studies):
    learned, decoupled = studies["2b"].rows["local"], studies["figure3"].rows["8 tokens"]
    assert {k: v for k, v in learned.items() if "image" not in k} == {
        k: v for k, v in decoupled.items() if "image" not in k
    }
    assert studies["2b"].rows["local"]["pixel_ap"] != studies["2b"].rows["global"]["pixel_ap"]
    assert len({metrics["pixel_ap"] for metrics in studies["figure3"].rows.values()}) == 5


def test_table_2b_scores_images_with_the_learned_prompts(pipe, drawn):
    samples = read_dataset(drawn, classes=["felt"])
    measured = ablation.ablate(pipe, samples, samples, epochs=1)["2b"].rows["local"]
    start = LearnedPrompts.start(pipe.tips.config, ensemble=pipe.prompts.ensemble)
    [(prompts, _)] = train_prompts(pipe.tips, pipe.tokenizer, Features(pipe, samples), start, epochs=1)
    results = pipe.with_options(prompts=prompts, mode="learned")([s.image for s in samples], "felt")
    expected = roc_auc_score([s.label for s in samples], [r.score for r in results])
    assert measured["image_auroc"] == pytest.approx(expected, abs=1e-6)


def test_table_7_averages_the_maps_of_blocks(pipe, drawn):
    samples = read_dataset(drawn, classes=["felt"])
    [result] = score_class([Variant(pipe, (1, 2))], samples)()
    tokens = pipe.encode_layers(next(pipe.pixels([samples[0].image])), [1, 2])
    maps = [anomaly_probability(t.patches, pipe.prototypes("felt")[1], pipe.tips.config.temperature) for t in tokens]
    assert result.pictures[0].local_score == pytest.approx(float((maps[0] + maps[1]).max() / 2), abs=1e-5)


def test_the_papers_rows_stand_beside_the_papers_data_only(studies, drawn, monkeypatch):
    assert all(not study.paper for study in studies.values())
    study = replace(studies["2c"], paper=published("2c", "VisA"))
    line = next(line for line in study.markdown().splitlines() if line.startswith("| S2 (TIPS-L/14-HR: paper, not"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["83.4", "85.8", "-"]
    assert "S2 is better than S5 on MVTec AD" in study.markdown()


def test_one_pass_serves_all(pipe, drawn, monkeypatch):
    seen, pixels = [], type(pipe).pixels
    monkeypatch.setattr(
        type(pipe), "pixels", lambda self, images, size: seen.extend(images) or pixels(self, images, size)
    )
    ablation.ablate(pipe, read_dataset(drawn))
    assert len(seen) == len(set(seen)) == 14


def test_learned_prompts_are_needed(pipe, drawn):
    with pytest.raises(ModelError, match="need learned prompts"):
        ablation.ablate(pipe.with_options(prompts=None, mode="fixed"), read_dataset(drawn))


def test_the_command(here, golden, drawn, tmp_path):
    command = ["ablate", drawn, "--model", golden.folder, "--image-size", 56, "--class", "felt", "--output", tmp_path]
    done = here(*command)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == sorted(
        ["ablation.json", "ablation.md", "2a.png", "2c.png", "6.png", "7.png"]
    )
    content = json.loads((tmp_path / "ablation.json").read_text())
    line = next(line for line in done.stdout.splitlines() if line.startswith("| decoupled"))
    assert f"{100 * content['2a']['rows']['decoupled']['aupro']:.1f}" in line
    assert done.stdout in (tmp_path / "ablation.md").read_text()


# --- CoPS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cops_studies(pipe, drawn):
    train = read_dataset(drawn, classes=["felt"])
    return ablation_methods.ablate_cops(pipe, read_dataset(drawn), train, epochs=1)


def test_rows_of_cops(cops_studies):
    assert {name: len(study.rows) for name, study in cops_studies.items()} == {
        "parts": 6,
        "order": 2,
        "samples": 2,
        "text": 2,
        "M": 4,
        "R": 4,
        "K": 4,
        "alpha": 5,
        "beta": 4,
    }
    assert [name for name, study in cops_studies.items() if study.ordered] == ["M", "R", "K", "alpha", "beta"]


def test_cops_is_trained_and_scored_as_by_itself(cops_studies, pipe, drawn):
    config, samples = pipe.tips.config, shuffled(read_dataset(drawn, classes=["felt"]), seed=0)
    start = Cops.start(config, temperature=config.temperature)
    [(prompts, _)] = train_prompts(pipe.tips, pipe.tokenizer, Features(pipe, samples), start, epochs=1)
    expected = evaluate(pipe.with_options(prompts=prompts, mode="learned"), read_dataset(drawn)).mean()
    full = cops_studies["parts"].rows["CoPS"]
    assert full == pytest.approx(expected, abs=1e-6)
    same = (("order", "own states (paper)"), ("M", "6"), ("K", "3"), ("R", "10"), ("alpha", "0.26"))
    assert all(cops_studies[study].rows[row] == full for study, row in same)
    assert cops_studies["beta"].rows["0.9"]["image_ap"] == pytest.approx(full["image_ap"])


def test_rows_of_cops_differ_where_something_else_is_done(cops_studies):
    parts = [json.dumps(metrics) for metrics in cops_studies["parts"].rows.values()]
    assert len(set(parts)) == len(parts)
    assert len({metrics["pixel_ap"] for metrics in cops_studies["alpha"].rows.values()}) == 5
    assert set(cops_studies["beta"].rows["0"]) == {"image_auroc", "image_ap", "image_f1max"}


# --- DAPO ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dapo_studies(pipe, drawn):
    """Trained on defects of two kinds, "crack" and "stain", and scored on spots."""
    train = read_dataset(drawn, classes=["felt"])
    defective = [sample for sample in train if sample.label]
    train = [replace(s, defect="crack" if s is defective[0] else "stain") if s.label else s for s in train]
    return train, ablation_methods.ablate_dapo(pipe, read_dataset(drawn), train, epochs=1)


def test_rows_of_dapo(dapo_studies):
    _, studies = dapo_studies
    assert {name: len(study.rows) for name, study in studies.items()} == {
        "prompt": 3,
        "text": 2,
        "image": 2,
        "kinds": 3,
        "mix": 3,
        "lambda": 4,
        "l": 5,
        "E": 3,
    }
    assert [name for name, study in studies.items() if study.ordered] == ["mix", "lambda", "l", "E"]
    for name in ("prompt", "text", "image", "kinds", "l", "E"):
        rows = [json.dumps(metrics) for metrics in studies[name].rows.values()]
        assert len(set(rows)) == len(rows), name


def test_dapo_is_trained_and_scored_as_by_itself(dapo_studies, pipe, drawn):
    train, studies = dapo_studies
    config, samples = pipe.tips.config, shuffled(train, seed=42)
    start = Dapo.start(config, temperature=config.temperature, kinds=["crack", "stain"])
    [(prompts, _)] = train_prompts(pipe.tips, pipe.tokenizer, Features(pipe, samples), start, epochs=1)
    own = pipe.with_options(prompts=prompts, mode="learned")
    expected = evaluate(own, read_dataset(drawn)).mean()
    full = studies["prompt"].rows["words and vectors (DAPO)"]
    assert full == pytest.approx(expected, abs=1e-6)
    same = ("text", "text tokens"), ("image", "no image tokens"), ("kinds", "those of the training"), ("mix", "0.01")
    same += ("lambda", "4"), ("l", "5"), ("E", "10")
    assert all(studies[study].rows[row] == full for study, row in same)
    expected = evaluate(own.with_options(kinds=["spot"]), read_dataset(drawn)).mean()
    assert studies["kinds"].rows["those of each class"] == pytest.approx(expected, abs=1e-6)
    start = Dapo.start(config, temperature=config.temperature, kinds=["damaged"])
    of_one = [replace(s, defect="damaged") if s.label else s for s in samples]
    [(prompts, _)] = train_prompts(pipe.tips, pipe.tokenizer, Features(pipe, of_one), start, epochs=1)
    expected = evaluate(pipe.with_options(prompts=prompts, mode="learned"), read_dataset(drawn)).mean()
    assert studies["kinds"].rows['one, "damaged"'] == pytest.approx(expected, abs=1e-6)


def test_other_methods_train_all_they_compare(here, golden, drawn):
    done = here("ablate", drawn, "--method", "cops", "--model", golden.folder)
    assert done.returncode == 2
    assert "--train" in done.stderr


# --- the readout -----------------------------------------------------------------------------------------------------


def test_readouts_are_measured_as_by_themselves(pipe, drawn, monkeypatch):
    monkeypatch.setattr(ablation_readouts, "WINDOW", 60)
    felt = read_dataset(drawn, classes=["felt"])
    rows = ablation_readouts.ablate_readouts(pipe, felt, felt, epochs=1, seed=3)["readout"].rows
    names = ("fixed", "learned", "direct")
    assert list(rows) == [
        f"{r}, {look}, {p}" for r in ("tokens", "values") for p in names for look in ("one look", "windows")
    ]
    values = pipe.with_options(prompts=None, mode="fixed", readout="values")
    assert rows["values, one look, fixed"] == pytest.approx(evaluate(values, felt).mean(), abs=1e-6)
    start = Direct.start(pipe.tips.config, temperature=pipe.tips.config.temperature, seed=3)
    [(prompts, _)] = train_prompts(pipe.tips, pipe.tokenizer, Features(values, felt), start, epochs=1)
    direct = values.with_options(prompts=prompts, mode="decoupled", readout="values")
    assert rows["values, one look, direct"] == pytest.approx(evaluate(direct, felt).mean(), abs=1e-6)
    results = direct.with_options(tile=60, overlap=0.25)([sample.image for sample in felt], "felt")
    assert all(result.tiles for result in results)
    labels, scores = [sample.label for sample in felt], [result.score for result in results]
    assert rows["values, windows, direct"]["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    maps = [Image.fromarray(result.anomaly_map).resize((56, 56), Image.Resampling.BILINEAR) for result in results]
    masks = [load_mask(sample, (56, 56)) for sample in felt]
    pixels = roc_auc_score(np.concatenate(masks).ravel(), np.concatenate(maps).ravel())
    assert rows["values, windows, direct"]["pixel_auroc"] == pytest.approx(pixels, abs=1e-3)


def test_the_command_for_readouts_says_what_it_takes(here, drawn):
    for options, said in (
        ([], "--readouts trains all of its prompts: it needs --train"),
        (["--train", drawn, "--method", "cops"], "--readouts goes without --method"),
    ):
        done = here("ablate", drawn, "--readouts", *options)
        assert done.returncode == 2 and said in done.stderr
