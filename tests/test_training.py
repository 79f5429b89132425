import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tipsomaly import Pipeline
from tipsomaly.data.images import load_image, to_pixels
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.samples import Sample
from tipsomaly.errors import ModelError, TrainingError
from tipsomaly.models.encoder import ImageTokens
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.losses import local_loss, upsample
from tipsomaly.prompts.prototypes import probabilities
from tipsomaly.studies import training
from tipsomaly.studies.training import Features, TrainingBatch, encode_samples, train, train_prompts


@pytest.fixture(scope="module")
def batch(golden):
    size = golden.pipe.image_size
    pixels = torch.stack([to_pixels(load_image(path).image, size) for path in golden.images])
    tokens = ImageTokens(*(token.clone() for token in golden.pipe.encode(pixels)))
    masks = torch.stack([torch.from_numpy(golden.mask), torch.zeros(size, dtype=torch.bool)]).float()
    return TrainingBatch(tokens, masks, labels=torch.tensor([1, 0]))


@pytest.mark.parametrize("objective, name", [("local", "seg"), ("both", "both"), ("global", "cls")])
def test_four_steps_equal_the_reference(golden, batch, objective, name):
    pipe, expected = golden.pipe, golden.expected
    start = LearnedPrompts(pipe.prompts.normal, pipe.prompts.abnormal, pipe.prompts.ensemble, objective=objective)
    [(prompts, history)] = train_prompts(pipe.tips, pipe.tokenizer, [batch] * 4, start, epochs=1)
    names = ("total", "focal", "dice_abnormal", "dice_normal", "image")
    np.testing.assert_allclose(
        [[parts[name] for name in names] for parts in history], expected[f"train_{name}_losses"], atol=1e-4
    )
    np.testing.assert_allclose(prompts.normal, expected[f"train_{name}_normal"], atol=1e-4)
    np.testing.assert_allclose(prompts.abnormal, expected[f"train_{name}_abnormal"], atol=1e-4)


def test_training_leaves_the_start_and_the_towers_alone(golden, batch):
    pipe = golden.pipe
    before = {name: value.clone() for name, value in pipe.tips.state_dict().items()}
    start = LearnedPrompts.start(pipe.tips.config, ensemble="paper", metadata={"seed": "111"})
    kept = start.normal.clone()
    (_, first), (prompts, second) = train_prompts(pipe.tips, pipe.tokenizer, [batch] * 10, start, learning_rate=1e-2)
    assert second[-1]["total"] < first[0]["total"]
    assert torch.equal(start.normal, kept)
    assert all(torch.equal(value, before[name]) for name, value in pipe.tips.state_dict().items())
    assert prompts.ensemble == "paper"
    assert prompts.metadata == {"seed": "111", "epochs": "2"}


def test_perfect_maps_lose_next_to_nothing():
    masks = torch.zeros(1, 28, 28)
    masks[:, 14:] = 1
    patches = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]).expand(1, 2, 2, 2)
    found, swapped = (
        sum(local_loss(upsample(probabilities(patches, pair, 0.01), (28, 28)), masks).values())
        for pair in (torch.eye(2), torch.eye(2).flip(0))
    )
    assert found < 0.5 < 2 < swapped


def test_initial_prompts_follow_their_seed(golden):
    one, same, other = (LearnedPrompts.start(golden.config, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.normal, same.normal)
    assert not torch.equal(one.normal, one.abnormal)
    assert not torch.equal(one.normal, other.normal)


# --- Features and training to files ----------------------------------------------------------------------------------


@pytest.fixture
def pipe(golden):
    return golden.pipe.with_options(image_size=56)


@pytest.fixture(scope="module")
def samples(drawn):
    return read_dataset(drawn)


@pytest.fixture
def start(golden):
    return LearnedPrompts.start(golden.config, tokens=3, ensemble="paper", metadata={"seed": "111"})


class Cut(Features):
    """Features that an interrupt hits in the middle of the second epoch."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = 0

    def __getitem__(self, index):
        self.read += index < len(self)
        if self.read == len(self) + 2:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_the_whole_path_equals_the_reference(golden, monkeypatch, tmp_path):
    expected = golden.expected
    monkeypatch.setattr(
        training, "load_mask", lambda sample, size: golden.mask if sample.label else golden.mask & False
    )
    pair = [Sample(path, None, "nut", "x", label) for path, label in zip(golden.images, (1, 0), strict=True)]
    prompts = train(golden.pipe, Features(golden.pipe, pair), tmp_path / "p.safetensors", golden.pipe.prompts, epochs=4)
    np.testing.assert_allclose(prompts.normal, expected["train_seg_normal"], atol=1e-4)
    np.testing.assert_allclose(prompts.abnormal, expected["train_seg_abnormal"], atol=1e-4)
    log = [json.loads(line) for line in (tmp_path / "p.log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]
    names = ("total", "focal", "dice_abnormal", "dice_normal", "image")
    np.testing.assert_allclose([[line[n] for n in names] for line in log], expected["train_seg_losses"], atol=1e-4)


def test_features_are_what_the_tower_says(pipe, samples, tmp_path):
    direct = list(encode_samples(pipe, samples, 4))
    memory, disk = Features(pipe, samples, 4), Features(pipe, samples, 4, tmp_path)
    assert len(direct) == len(memory) == len(disk) == 4
    assert memory.nbytes == 2 * disk.nbytes - 14 * 56 * 56  # a mask takes a byte a pixel in both
    for one, kept, stored in zip(direct, memory, disk, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tokens, kept.tokens, strict=True))
        for a, b in zip(one.tokens, stored.tokens, strict=True):
            np.testing.assert_allclose(a, b.float(), rtol=1e-3, atol=1e-3)
        for batch in (kept, stored):
            assert torch.equal(one.masks, batch.masks)
            assert torch.equal(one.labels, batch.labels)


def test_cached_features_are_not_computed_again(pipe, samples, tmp_path, monkeypatch):
    first, encoded, pixels = Features(pipe, samples, 4, tmp_path), [], Pipeline.pixels
    monkeypatch.setattr(
        Pipeline, "pixels", lambda self, images, size: encoded.extend(images) or pixels(self, images, size)
    )
    again = Features(pipe.with_options(domain="medical", mode="fixed"), samples, 4, tmp_path)  # no matter for features
    assert encoded == []
    assert torch.equal(first[2].tokens.patches, again[2].tokens.patches)
    for number in (2, 3):  # as after an interrupt
        next(tmp_path.glob(f"*/00000{number}.safetensors")).unlink()
    Features(pipe, samples, 4, tmp_path)
    assert encoded == [s.image for s in samples[8:]]
    for number, damage in ((0, lambda content: content[:-1]), (2, lambda content: content[:-9] + b"damaged!!")):
        encoded.clear()
        path = next(tmp_path.glob(f"*/00000{number}.safetensors"))
        content = path.read_bytes()
        path.write_bytes(damage(content))
        Features(pipe, samples, 4, tmp_path)
        assert encoded == [s.image for s in samples[4 * number : 4 * number + 4]]
        assert path.read_bytes() == content
    encoded.clear()
    Features(pipe.with_options(image_size=42), samples, 4, tmp_path)
    assert len(encoded) == 14


@pytest.mark.parametrize("cached", [False, True])
def test_an_interrupted_training_ends_as_without(pipe, samples, start, tmp_path, cached):
    options = (4, tmp_path / "cache") if cached else (4,)
    whole, cut = tmp_path / "whole" / "p.safetensors", tmp_path / "cut" / "p.safetensors"
    train(pipe, Features(pipe, samples, *options), whole, start, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(pipe, Cut(pipe, samples, *options), cut, start, epochs=3)
    assert LearnedPrompts.load(cut).metadata["epochs"] == "1"
    train(pipe, Features(pipe, samples, *options), cut, start, epochs=3)
    for suffix in (".safetensors", ".log.jsonl"):
        assert cut.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    assert LearnedPrompts.load(whole).metadata == {"seed": "111", "epochs": "3"}
    assert Image.open(whole.with_suffix(".png")).width > 400


def test_a_finished_training_is_lengthened_or_begun_anew(pipe, samples, start, tmp_path, capsys):
    features, whole, path = Features(pipe, samples, 8), tmp_path / "whole.safetensors", tmp_path / "p.safetensors"
    train(pipe, features, whole, start, epochs=2)
    one = train(pipe, features, path, start, epochs=1)
    train(pipe, features, path, start, epochs=2)
    assert path.read_bytes() == whole.read_bytes()
    assert torch.equal(train(pipe, features, path, start, epochs=1).normal, one.normal)
    other = LearnedPrompts(start.normal, start.abnormal, start.ensemble, start.metadata, objective="global")
    for begun, options in ((other, {}), (start, {"learning_rate": 0.1}), (start, {"shuffle": True})):
        fresh = train(pipe, features, tmp_path / "fresh.safetensors", begun, epochs=2, **options)
        (tmp_path / "fresh.state").unlink()
        assert torch.equal(train(pipe, features, path, begun, epochs=2, **options).normal, fresh.normal)
    path.with_suffix(".state").write_bytes(b"no state")
    train(pipe, features, path, start, epochs=2)
    assert path.read_bytes() == whole.read_bytes()
    assert "not a training state" in capsys.readouterr().err


def test_the_loss_curve_does_not_take_the_place_of_the_prompts(pipe, samples, start, tmp_path):
    for name in ("p.png", "p.v1", "p", "p.state"):
        with pytest.raises(ModelError, match="must end in .safetensors"):
            train(pipe, None, tmp_path / name, start)


def test_a_training_that_runs_away_stops(pipe, samples, start, tmp_path):
    with pytest.raises(TrainingError, match="no longer finite after epoch 1: lower the learning rate"):
        train(pipe, Features(pipe, samples), tmp_path / "p.safetensors", start, learning_rate=1e38)
    assert not (tmp_path / "p.safetensors").exists()


def test_the_command_gives_the_same_file_again(here, golden, drawn, tmp_path):
    files = []
    for name in "ab":
        out = tmp_path / name / "mine.safetensors"
        command = ["train", drawn, "--output", out, "--model", golden.folder, "--image-size", 56, "--epochs", 1]
        command += ["--tokens", 2, "--seed", 5, "--ensemble", "paper", "--objective", "both", "--class", "felt"]
        if name == "a":  # in a process of its own, where strings hash to other numbers
            command = [sys.executable, "-m", "tipsomaly", *map(str, command)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        else:
            done = here(*command)
        assert done.returncode == 0, done.stderr
        assert "features of 7 pictures: 0 MB in memory" in done.stderr
        files.append(out.read_bytes())
    assert files[0] == files[1]
    prompts = LearnedPrompts.load(out)
    assert prompts.normal.shape == (2, golden.config.text.dim)
    assert (prompts.ensemble, prompts.objective) == ("paper", "both")
    assert prompts.temperature == pytest.approx(golden.config.temperature)
    assert prompts.metadata == {
        "name": "mine",
        "backbone": "model",
        "trained_on": f"{drawn.name} (mvtec, test)",
        "epochs": "1",
        "seed": "5",
        "batch_size": "8",
        "learning_rate": "0.001",
        "pictures": "7",
        "image_size": "56x56",
    }


def test_another_file_is_no_prompt_set(golden, tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="p.safetensors is not a safetensors file"):
        Pipeline.from_pretrained(golden.folder, prompts=tmp_path / "p.safetensors")
