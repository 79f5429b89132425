"""The prompt methods side by side: in one model folder, one pass, one trainer and one file format."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.detection.engine import Engine
from tipsomaly.detection.result import Result
from tipsomaly.errors import ModelError, OptionError
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.direct import Direct
from tipsomaly.prompts.methods import METHODS, load_prompts
from tipsomaly.studies.evaluation import evaluate, evaluate_methods
from tipsomaly.studies.kinds import evaluate_kinds
from tipsomaly.studies.paper import DATA_SETS
from tipsomaly.studies.training import Features, Pixels, shuffled, train

KINDS = ["hole", "scratch", "spot"]


@pytest.fixture(scope="module")
def start(golden):
    """A small set of each method, as its training begins."""
    return {
        "tipsomaly": LearnedPrompts.start(golden.config, tokens=2, ensemble="paper"),
        "dapo": Dapo.start(golden.config, temperature=0.05, kinds=KINDS, rows=2, tokens=2, text_tokens=1),
        "dapo with image tokens": Dapo.start(
            golden.config, temperature=0.05, kinds=KINDS, rows=1, tokens=2, text_tokens=1, image_tokens=1
        ),
        "direct": Direct.start(golden.config, temperature=0.05),
        "cops": Cops.start(golden.config, temperature=0.05, samples=3, states=2, context=2, text_tokens=2),
    }


@pytest.fixture(scope="module")
def model(golden, start, tmp_path_factory):
    """A model folder with prompts of three methods."""
    folder = tmp_path_factory.mktemp("methods") / "model"
    shutil.copytree(golden.folder, folder)
    for name in ("dapo", "cops"):
        start[name].save(folder / "prompts" / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipes(model):
    first = Pipeline.from_pretrained(model, image_size=56)
    return SimpleNamespace(**first.methods())


@pytest.fixture
def encoded(monkeypatch):
    """The number of pictures in each batch that goes through the vision tower."""
    batches, encode = [], Engine.encode_layers

    def counting(self, pixels, *arguments):
        batches.append(len(pixels))
        return encode(self, pixels, *arguments)

    monkeypatch.setattr(Engine, "encode_layers", counting)
    return batches


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tipsomaly", "dapo", "dapo with image tokens", "cops", "direct"])
def test_a_file_holds_a_method(start, tmp_path, name):
    method = start[name]
    method.metadata = {"backbone": "tiny"}
    method.save(tmp_path / "a.safetensors")
    again = load_prompts(tmp_path / "a.safetensors")
    assert type(again) is type(method)
    assert again.digest() == method.digest()
    assert again.settings() == method.settings()
    assert again.temperature == method.temperature
    assert again.metadata == {"backbone": "tiny"}
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    others = set(METHODS.values()) - {type(method)}
    for other in others:
        with pytest.raises(ValueError, match=f"prompts of the method '{method.NAME}', not '{other.NAME}'"):
            other.load(tmp_path / "a.safetensors")


def test_files_of_the_first_format_are_read(tmp_path):
    pair = {"normal": torch.randn(8, 16), "abnormal": torch.randn(8, 16)}
    metadata = {"format": "tipsomaly-prompts-v1", "ensemble": "medical", "backbone": "x", "loss": "local"}
    save_file(pair, tmp_path / "old.safetensors", metadata=metadata)
    prompts = load_prompts(tmp_path / "old.safetensors")
    assert isinstance(prompts, LearnedPrompts)
    assert torch.equal(prompts.normal, pair["normal"])
    assert (prompts.ensemble, prompts.temperature, prompts.metadata["backbone"]) == ("medical", None, "x")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"temperature": "nan"}, "temperature must be positive"),
        ({"temperature": "warm"}, "settings cannot be read"),
        ({"settings": "[" * 5000}, "settings cannot be read"),
        ({"settings": "[]"}, "not an object"),
        ({"settings": '{"kinds": []}'}, "at least one"),
        ({"settings": '{"kinds": 5}'}, "at least one"),
        ({"settings": '{"magic": 5}'}, "not a prompt set of the method 'dapo'"),
        ({"settings": json.dumps({"kinds": [f"k{i}" for i in range(257)]})}, "at most 256"),
        ({"settings": json.dumps({"kinds": ["hole"], "mix": "much"})}, "not a prompt set of the method 'dapo'"),
        ({"settings": json.dumps({"kinds": ["hole"], "normal_sentence": 5})}, "not a prompt set of the method 'dapo'"),
        ({"junk": "x" * 70000}, "characters of metadata"),
        ({"normal": torch.full((2, 2, 16), float("nan"))}, "NaN or infinity"),
        ({"normal": torch.zeros(2, 2, 16, dtype=torch.int64)}, "no numbers"),
        ({"normal": torch.zeros(3, 2, 16)}, "of one shape"),
        ({"normal": torch.zeros(2000, 1, 4), "abnormal": torch.zeros(2000, 1, 4)}, "more than 4096 sentences"),
        ({"magic": torch.zeros(1)}, "not a prompt set of the method 'dapo'"),
    ],
)
def test_hostile_files_are_refused_in_a_line(tmp_path, change, message):
    tensors = {"normal": torch.zeros(2, 2, 16), "abnormal": torch.zeros(2, 2, 16)}
    metadata = {"format": "tipsomaly-prompts-v2", "method": "dapo", "temperature": "0.1"}
    metadata["settings"] = json.dumps({"kinds": KINDS})
    tensors |= {name: value for name, value in change.items() if isinstance(value, torch.Tensor)}
    metadata |= {name: value for name, value in change.items() if isinstance(value, str)}
    save_file(tensors, tmp_path / "p.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(tmp_path / "p.safetensors")
    assert "\n" not in str(error.value)


def test_prompts_for_other_towers_are_refused(golden, start):
    deep = Dapo(torch.zeros(1, 2, 128), torch.zeros(1, 2, 128), torch.zeros(9, 1, 128), kinds=KINDS, temperature=1)
    with pytest.raises(ModelError, match="for 9 blocks of the text tower .* the model has 2"):
        golden.pipe.with_options(prompts=deep)
    wide = Dapo(torch.zeros(1, 2, 64), torch.zeros(1, 2, 64), kinds=KINDS, temperature=1)
    with pytest.raises(ModelError, match="64 wide"):
        golden.pipe.with_options(prompts=wide)


# --- One model, several methods --------------------------------------------------------------------------------------


def test_a_pipeline_takes_any_method_by_name(model, pipes, golden):
    assert {name: pipe.mode for name, pipe in vars(pipes).items()} == {
        "tipsomaly": "decoupled",
        "cops": "learned",
        "dapo": "learned",
    }
    dapo = Pipeline.from_pretrained(model, prompts="dapo", image_size=56)
    assert (dapo.prompts.NAME, dapo.mode) == ("dapo", "learned")
    for name, pipe in vars(pipes).items():
        result = pipe(golden.images[0])
        assert result.score == pytest.approx(
            result.global_score + result.local_score
            if name == "tipsomaly"
            else result.global_score
            if name == "dapo"
            else 0.9 * result.global_score + 0.1 * result.local_score
        )
    assert dapo(golden.images[0]).score == pytest.approx(pipes.dapo(golden.images[0]).score)
    assert len({pipe.settings()["prompts"] for pipe in vars(pipes).values()}) == 3


def test_other_prompts_bring_their_mode_unless_one_was_chosen(pipes, start):
    assert pipes.tipsomaly.with_options(prompts=start["dapo"]).mode == "learned"
    assert pipes.dapo.with_options(prompts=start["tipsomaly"]).mode == "decoupled"
    assert pipes.tipsomaly.with_options(mode="fixed").with_options(prompts=start["dapo"]).mode == "fixed"
    assert pipes.tipsomaly.with_options(mode="learned").with_options(prompts=start["tipsomaly"]).mode == "learned"


def test_compare_has_a_column_for_each_method_and_encodes_once(pipes, golden, encoded):
    results = pipes.tipsomaly.compare(golden.images[0])
    assert list(results) == ["fixed", "learned", "decoupled", "cops", "dapo"]
    assert encoded == [1]
    for name in ("cops", "dapo"):
        alone = getattr(pipes, name)(golden.images[0])
        assert results[name].score == pytest.approx(alone.score, abs=1e-6)
        np.testing.assert_allclose(results[name].patch_map, alone.patch_map, atol=1e-6)


def test_pictures_of_a_batch_do_not_matter_to_each_other(pipes, golden):
    pictures = golden.images * 3
    for pipe in vars(pipes).values():
        together, alone = pipe(pictures, batch_size=6), [pipe(picture) for picture in pictures[:2]]
        for a, b in zip(together, alone * 3, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-5)
            np.testing.assert_allclose(a.patch_map, b.patch_map, atol=1e-5)


def test_image_tokens_change_the_tower(golden, start):
    pipe = golden.pipe.with_options(image_size=56, prompts=start["dapo with image tokens"])
    plain = pipe.with_options(prompts=start["dapo"])
    assert not np.allclose(pipe(golden.images[0]).spatial_token, plain(golden.images[0]).spatial_token, atol=1e-4)


def test_tiles_are_refused_where_a_method_needs_the_whole_picture(pipes):
    with pytest.raises(OptionError, match="cops depend on the whole picture"):
        pipes.cops.with_options(tile=56)
    assert "cops" not in pipes.tipsomaly.with_options(tile=56).compare(np.zeros((60, 60, 3), np.uint8))


def test_prompts_know_what_their_patches_are_read_from(golden, start, tmp_path):
    method = Direct(start["direct"].normal, start["direct"].abnormal, temperature=1, metadata={"readout": "values"})
    method.save(tmp_path / "p.safetensors")
    pipe = Pipeline.from_pretrained(golden.folder, prompts=tmp_path / "p.safetensors", image_size=56)
    assert pipe.options.readout == "values"
    as_asked = pipe.with_options(readout="tokens")
    assert not np.allclose(pipe(golden.images[0]).patch_map, as_asked(golden.images[0]).patch_map, atol=1e-4)
    assert golden.pipe.options.readout == "tokens"
    with pytest.raises(OptionError, match="unknown readout 'magic': choose tokens, values"):
        pipe.with_options(readout="magic")


# --- Kinds of defects ------------------------------------------------------------------------------------------------


def test_a_result_names_the_kinds(pipes, golden):
    result = pipes.dapo(golden.images[0])
    assert set(result.kinds) == set(KINDS)
    assert list(result.kinds.values()) == sorted(result.kinds.values(), reverse=True)
    assert sum(result.kinds.values()) == pytest.approx(result.patch_map.max(), abs=2e-3)
    assert list(result.record()["kinds"]) == list(result.kinds)
    assert pipes.tipsomaly(golden.images[0]).kinds is None
    assert "kinds" not in pipes.tipsomaly(golden.images[0]).record()
    own = pipes.dapo.with_options(kinds=["Rust_stain", "hole"])(golden.images[0])
    assert set(own.kinds) == {"rust stain", "hole"}
    with pytest.raises(OptionError, match="prompts that know kinds"):
        pipes.tipsomaly.with_options(kinds=["hole"])


@pytest.mark.parametrize("tile", [None, 60])
def test_a_region_has_the_kind_of_its_patches(pipes, golden, tile):
    pipe = pipes.dapo.with_options(tile=tile)
    result = pipe(golden.images[0])
    regions = result.regions(float(np.quantile(result.anomaly_map, 0.9)))
    assert regions
    assert all(region.kind in KINDS and 0 < region.kind_probability < 1 for region in regions)
    assert (result.tiles is not None) == (tile is not None)
    assert result.kind_map.shape == (*(result.tiles.patch_maps if tile else result.patch_map).shape, 3)


def test_regions_and_labels_of_a_map_that_is_known():
    patches, kinds = np.zeros((4, 6), np.float32), np.zeros((4, 6, 2), np.float16)
    patches[1, 1], kinds[1, 1] = 0.9, (0.1, 0.8)
    patches[3, 5], kinds[3, 5] = 0.7, (0.6, 0.1)
    picture = np.full((400, 600, 3), 90, np.uint8)
    options = {"kind_names": ("hole", "scratch"), "kind_map": kinds, "sigma": 0, "pixel_threshold": 0.3}
    result = Result(0.1, 0.2, patches, 600, 400, (56, 84), "nut", "learned", source=picture, **options)
    assert list(result.kinds) == ["scratch", "hole"]
    assert [(r.kind, round(r.kind_probability, 2)) for r in result.regions(0.3)] == [("scratch", 0.8), ("hole", 0.6)]
    assert [r["kind"] for r in result.record()["regions"]] == ["scratch", "hole"]
    plain = Result(0.1, 0.2, patches, 600, 400, (56, 84), "nut", "learned", source=picture, sigma=0)
    assert np.asarray(result.overlay(0.3) != np.asarray(plain.overlay(0.3))).any()


def test_kinds_are_measured_against_the_rest(pipes, drawn, tmp_path):
    samples = read_dataset(drawn)
    evaluation = evaluate(pipes.dapo, samples, kinds_of_class=True)
    picture = evaluation.classes[0].pictures[0]
    assert set(picture.kinds) == {"spot"}  # the only one that occurs
    found = evaluate_kinds(evaluation, samples)
    felt = found.classes["felt"]
    assert set(felt.kinds) == {"normal", "spot"}
    assert sum(count for row in felt.confusion.values() for count in row.values()) == 7
    scores, labels = [p.kinds["spot"] for p in evaluation.classes[0].pictures], [s.label for s in samples[:7]]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, x in zip(scores, labels, strict=True)
        if x
        for b, y in zip(scores, labels, strict=True)
        if not y
    ]
    assert felt.kinds["spot"]["auroc"] == pytest.approx(np.mean(pairs))
    assert (felt.named, felt.chance) == (1.0, 1.0)
    found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kinds.md", "kinds.json", "confusion.png"}
    other = evaluate_kinds(evaluate(pipes.dapo.with_options(kinds=["hole", "scratch"]), samples), samples)
    assert other.classes["felt"].left_out == 3
    assert other.classes["felt"].kinds["hole"]["auroc"] is None
    with pytest.raises(OptionError, match="know no kinds"):
        evaluate_kinds(evaluate(pipes.tipsomaly, samples), samples)


def test_methods_are_evaluated_in_one_pass(pipes, drawn, tmp_path, encoded):
    samples = read_dataset(drawn)
    together = evaluate_methods(vars(pipes), samples, tmp_path / "out")
    assert sum(encoded) == len(samples)
    for name, pipe in vars(pipes).items():
        assert together[name].mean() == pytest.approx(evaluate(pipe, samples).mean(), abs=1e-6)
        assert (tmp_path / "out" / name / "results.json").is_file()
    cells = [line.split("|")[1:3] for line in (tmp_path / "out" / "methods.md").read_text().splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["tipsomaly", "S5"],
        ["cops", "0.9 spatial + 0.1 local"],
        ["dapo", "S2"],
    ]
    encoded.clear()
    evaluate_methods(vars(pipes), samples, tmp_path / "out")
    assert encoded == []


# --- Training --------------------------------------------------------------------------------------------------------


class Interrupted:
    """Batches that an interrupt hits in the middle of the second epoch."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)

    def __getitem__(self, index):
        self.read = getattr(self, "read", 0) + 1
        if self.read == len(self) + 2:
            raise KeyboardInterrupt
        return super().__getitem__(index)


class CutFeatures(Interrupted, Features):
    pass


class CutPixels(Interrupted, Pixels):
    pass


@pytest.mark.parametrize("name", ["dapo", "dapo with image tokens", "cops", "direct"])
def test_an_interrupted_training_ends_as_without(golden, drawn, start, tmp_path, name):
    pipe, method = golden.pipe.with_options(image_size=56), start[name]
    samples = shuffled(read_dataset(drawn), 0)
    whole, cut = tmp_path / "whole" / "p.safetensors", tmp_path / "cut" / "p.safetensors"
    batches, interrupted = (Features, CutFeatures) if method.image_tokens is None else (Pixels, CutPixels)
    trained = train(pipe, batches(pipe, samples, 4), whole, method, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(pipe, interrupted(pipe, samples, 4), cut, method, epochs=3)
    assert load_prompts(cut).metadata["epochs"] == "1"
    train(pipe, batches(pipe, samples, 4), cut, method, epochs=3)
    for suffix in (".safetensors", ".log.jsonl"):
        assert cut.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    log = [json.loads(line) for line in whole.with_suffix(".log.jsonl").read_text().splitlines()]
    assert len(log) == 3 * 4
    assert {"total", "focal", "dice_abnormal", "dice_normal"} <= log[0].keys()
    assert ("kl" in log[0]) == (name == "cops")
    with torch.no_grad():
        before, after = method.tensors(), trained.tensors()
        assert all(not torch.equal(before[key], after[key]) for key in before.keys() & after.keys())


@pytest.mark.parametrize("method", ["dapo", "cops"])
def test_the_command_trains_by_the_published_recipe(here, golden, drawn, tmp_path, method, monkeypatch):
    counts = {"categories": 2, "normal": 8, "anomalous": 6}
    monkeypatch.setitem(DATA_SETS, "VisA", counts)  # as if the pictures were those
    out = tmp_path / "mine.safetensors"
    command = ["train", drawn, "--output", out, "--model", golden.folder, "--image-size", 28, "--method", method]
    extra = ["--rows", 1, "--tokens", 1] if method == "dapo" else ["--epochs", 1]
    done = here(*command, *extra)
    assert done.returncode == 0, done.stderr
    prompts = load_prompts(out)
    assert method == prompts.NAME
    assert prompts.metadata["data_set"] == "VisA"
    assert "learned on VisA (CC BY 4.0)" in done.stdout
    assert prompts.temperature == pytest.approx(golden.config.temperature)
    assert (prompts.metadata["epochs"], prompts.metadata["seed"]) == (("5", "42") if method == "dapo" else ("1", "0"))
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["format"] == "tipsomaly-prompts-v2"
    if method == "dapo":
        assert prompts.kinds == ("spot",)
    refused = here(*command, *extra, "--objective", "both")
    assert refused.returncode == 2
    assert f"--objective is no option of the method {method}" in refused.stderr


def test_the_commands_show_kinds_and_methods(here, model, drawn, golden, tmp_path):
    def run(*arguments):
        return here(*arguments, "--model", model, "--image-size", 28)

    done = run("detect", golden.images[0], "--prompts", "dapo", "--kinds", "rust,Deep_scratch", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["kinds"]) == {"rust", "deep scratch"}
    done = run("evaluate", drawn, "--class", "felt", "--prompts", "dapo", "--output", tmp_path, "--kinds")
    assert done.returncode == 0, done.stderr
    assert "| felt: spot" in done.stdout
    assert (tmp_path / "confusion.png").is_file()
    done = run("evaluate", drawn, "--class", "felt", "--methods", "all", "--output", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[2:]] == ["tipsomaly", "cops", "dapo"]
