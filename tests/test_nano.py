"""The bundled model, and the code that draws its pictures and trains it."""

import json
import random

import numpy as np
import pytest
import torch

from hub.nano import pictures, train
from hub.nano.canvas import Canvas
from hub.nano.defects import DEFECTS, apply
from hub.nano.photo import photograph
from hub.nano.student import build, deepen, multiply_in_bfloat16
from hub.nano.surfaces import HELD_OUT, SURFACES
from hub.nano.words import Sentences, nouns
from tipsomaly import Pipeline
from tipsomaly.models.hub import BUNDLED
from tipsomaly.names import clean_class_name


@pytest.fixture(scope="module")
def nano():
    return Pipeline.from_pretrained()


def test_it_is_small(nano):
    assert sum(p.numel() for p in nano.tips.parameters()) <= 8e6
    assert sum(path.stat().st_size for path in BUNDLED["nano"].rglob("*")) <= 16e6


def test_transformers_opens_it_with_the_same_outputs(nano):
    from transformers import Tipsv2Model

    oracle = Tipsv2Model.from_pretrained(BUNDLED["nano"]).eval()
    pixels = torch.rand(1, 3, *nano.image_size)
    with torch.inference_mode():
        states = oracle.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(nano.encode(pixels).spatial, states[:, 1], atol=1e-4, rtol=1e-4)


def test_it_knows_the_words_of_the_prompts(nano):
    for word in ("flawless", "damaged", "defect", "scratched", "bottle", "transistor"):
        assert nano.tokenizer([word])[1].sum() <= 2, word


def test_it_says_which_words_it_does_not_know(nano):
    assert all(not nano.tokenizer.unknown(clean_class_name(noun)) for noun in nouns())
    grey = np.full((60, 60), 128, np.uint8)
    found = nano(grey, "螺丝")
    assert found.note == "nano does not know the word 螺丝: taken for 'object'"
    assert found.score == nano(grey).score


def test_it_answers_to_the_words(nano):
    """Abnormal words must not score as normal ones do."""
    (normal, abnormal), _ = nano.prototypes("metal plate", "fixed")
    assert torch.dot(normal, abnormal) < 0.999


@pytest.mark.parametrize("name", SURFACES)
def test_surfaces_are_pictures_that_follow_their_seed(name):
    def draw():
        return SURFACES[name].draw(Canvas(2, 56, torch.Generator().manual_seed(1)))

    image, foreground = draw()
    assert image.shape == (2, 3, 56, 56)
    assert foreground.shape == (2, 1, 56, 56)
    for tensor in (image, foreground):
        assert tensor.isfinite().all()
        assert 0 <= tensor.min() <= tensor.max() <= 1
    assert torch.equal(image, draw()[0])
    assert not torch.equal(image[0], image[1])


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_changes_the_picture_where_its_mask_says(name):
    generator = torch.Generator().manual_seed(3)
    image, foreground = SURFACES["concrete"].draw(Canvas(8, 84, generator))
    damaged, mask = apply(DEFECTS[name], Canvas(8, 84, generator), image, foreground)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.amax((1, 2, 3)).sum() >= 6  # nearly every picture gets its defect
    change = (damaged - image).abs().mean(1, keepdim=True)
    inside = (change * mask).sum() / mask.sum()
    outside = (change * (1 - mask)).sum() / (1 - mask).sum()
    assert inside > 5 * outside
    assert torch.equal(damaged[mask.amax((1, 2, 3)) == 0], image[mask.amax((1, 2, 3)) == 0])


def test_photographs_keep_the_mask_a_mask():
    generator = torch.Generator().manual_seed(0)
    canvas = Canvas(16, 70, generator)
    mask = torch.zeros(16, 1, 70, 70)
    mask[:, :, 20:40, 30:50] = 1
    image, moved = photograph(canvas, canvas.uniform(k=3).expand(16, 3, 70, 70) * (1 - mask), mask)
    assert image.isfinite().all()
    assert 0 <= image.min() <= image.max() <= 1
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    assert not torch.equal(moved, mask)


def test_batches_depend_on_their_number_alone():
    one, other = (pictures.draw_batch(7, 32, 56, pictures.TRAINING_FAMILIES) for _ in range(2))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.masks, other.masks)
    assert (one.kind >= 0).sum() > 8
    assert torch.equal(one.kind >= 0, one.masks.flatten(1).amax(1) > 0.5)
    assert not set(one.family) & set(HELD_OUT)


def test_validation_sees_what_nano_can(nano, monkeypatch):
    monkeypatch.setattr(train, "VALIDATION_PICTURES", 16)
    monkeypatch.setattr(train, "VALIDATION_SIZE", 168)
    drawn = train.draw_validation()
    assert sorted(batch.family[0] for batch in drawn) == sorted(HELD_OUT)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # an unlucky random model can rank a hundred pictures well above chance
        model = build(nano.tokenizer, 128, nano.tips.config.vision.depth)
    untrained = train.validate(model, nano.tokenizer, drawn)
    model.load_state_dict(nano.tips.state_dict(), strict=False)
    model.free.data = nano.prototypes("object", "learned")[1]
    trained = train.validate(model, nano.tokenizer, drawn)
    assert trained.patch > 0.75 > untrained.patch + 0.1
    assert trained.image > untrained.image + 0.05
    # The pattern of table 2a where nano shows it: fixed prompts collapse on patches.
    assert trained.patch_fixed < trained.patch - 0.2


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(train, "BATCH", {56: 16})
    monkeypatch.setitem(train.SCHEDULES, "stretch", train.SCHEDULES["stretch"]._replace(early=(1,), late=(1,)))
    monkeypatch.setattr(train, "WHITENED", 1)
    monkeypatch.setattr(train, "VALIDATE_EVERY", 5)
    monkeypatch.setattr(train, "VALIDATION_SIZE", 56)


def test_training_resumes_where_it_stopped(tmp_path, small_batches, capsys):
    """Three steps, then three more, end like six at once."""
    options = {
        "dim": 64,
        "seed": 1,
        "device": "cpu",
        "workers": 0,
        "start": None,
        "threads": 2,
        "photographs": None,
        "teacher": None,
    }
    train.train(tmp_path / "whole", steps=6, minutes=0, **options)
    [validation] = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.time, "time", iter(range(0, 10**6, 40)).__next__)  # every look at the clock costs 40 s
        train.train(tmp_path / "parts", steps=6, minutes=1, **options)
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["step"] < 6
    train.train(tmp_path / "parts", steps=6, minutes=0, **options)
    assert validation in capsys.readouterr().out
    (tmp_path / "parts" / "state.json").write_text('{"step": 5}')  # as if cut off between the files and it
    with pytest.raises(SystemExit, match=r"weights.safetensors is not of step 5"):
        train.train(tmp_path / "parts", steps=6, minutes=0, **options)
    whole, parts = (train.load_file(tmp_path / name / "average.safetensors") for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)


def test_a_deeper_tower_begins_by_saying_the_same(nano):
    pixels = torch.rand(2, 3, 56, 84)
    state = nano.tips.state_dict()
    depth = nano.tips.config.vision.depth
    deeper = build(nano.tokenizer, 128, depth + 2)
    assert deeper.load_state_dict(deepen(state, depth + 2), strict=False).missing_keys == ["log_temperature", "free"]
    multiply_in_bfloat16(deeper)  # attention as two products
    for mine, theirs in zip(deeper.vision_encoder(pixels), nano.tips.vision_encoder(pixels), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    sum(token.square().sum() for token in deeper.vision_encoder(pixels[:1])).backward()
    for block in deeper.vision_encoder.blocks:
        assert block.attn.proj.weight.grad.abs().sum() > 0
        assert block.mlp.fc2.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="grows to at most"):
        deepen(state, 2 * depth + 1)


def test_training_in_bfloat16_goes_where_float32_does(nano):
    batch = pictures.draw_batch(3, 8, 112, pictures.TRAINING_FAMILIES, groups=2)
    found = []
    for bfloat16 in (False, True):
        model = build(nano.tokenizer, 128, nano.tips.config.vision.depth)
        model.load_state_dict(nano.tips.state_dict(), strict=False)
        model.free.data = nano.prototypes("object", "learned")[1]
        if bfloat16:
            multiply_in_bfloat16(model)
        words = Sentences(random.Random(0), SURFACES)
        wanted = [model.vision_encoder.blocks[0].attn.qkv.weight, model.free]
        found.append(train.gradients(model, nano.tokenizer, None, bfloat16, wanted, batch, words))
    (values, slopes), (rounded, rounded_slopes) = found
    assert rounded == pytest.approx(values, rel=0.02, abs=0.02)
    assert rounded != values
    for exact, near in zip(slopes, rounded_slopes, strict=True):
        assert torch.cosine_similarity(exact.flatten(), near.flatten(), 0) > 0.98
