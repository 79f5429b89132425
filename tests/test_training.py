import numpy as np
import pytest
import torch

from tipsomaly.images import load_image, to_pixels
from tipsomaly.prompts import LearnedPrompts
from tipsomaly.tips import ImageTokens
from tipsomaly.training import TrainingBatch, initial_prompts, losses, train_prompts


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
    [(prompts, history)] = train_prompts(
        pipe.tips, pipe.tokenizer, [batch] * 4, pipe.learned, epochs=1, objective=objective
    )
    columns = [[p.total(objective), p.focal, p.dice_abnormal, p.dice_normal, p.image] for p in history]
    np.testing.assert_allclose(torch.tensor(columns), expected[f"train_{name}_losses"], atol=1e-4)
    np.testing.assert_allclose(prompts.normal, expected[f"train_{name}_normal"], atol=1e-4)
    np.testing.assert_allclose(prompts.abnormal, expected[f"train_{name}_abnormal"], atol=1e-4)


def test_training_leaves_the_start_and_the_towers_alone(golden, batch):
    pipe = golden.pipe
    before = {name: value.clone() for name, value in pipe.tips.state_dict().items()}
    start = LearnedPrompts(*initial_prompts(pipe.tips.config.text.dim), "paper", {"seed": "111"})
    kept = start.normal.clone()
    (_, first), (prompts, second) = train_prompts(pipe.tips, pipe.tokenizer, [batch] * 10, start, learning_rate=1e-2)
    assert second[-1].total() < first[0].total()
    assert torch.equal(start.normal, kept)
    assert all(torch.equal(value, before[name]) for name, value in pipe.tips.state_dict().items())
    assert prompts.ensemble == "paper"
    assert prompts.metadata == {"seed": "111", "loss": "local", "epochs": "2"}


def test_perfect_maps_lose_next_to_nothing():
    masks = torch.zeros(1, 28, 28)
    masks[:, 14:] = 1
    patches = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]).expand(1, 2, 2, 2)
    batch = TrainingBatch(ImageTokens(torch.ones(1, 2), torch.ones(1, 2), patches), masks, torch.tensor([1]))
    parts = losses(batch, torch.eye(2), temperature=0.01)
    swapped = losses(batch, torch.eye(2).flip(0), temperature=0.01)
    assert parts.total() < 0.5 < 2 < swapped.total()


def test_initial_prompts_follow_their_seed():
    assert torch.equal(initial_prompts(16)[0], initial_prompts(16)[0])
    assert not torch.equal(initial_prompts(16)[0], initial_prompts(16)[1])
    assert not torch.equal(initial_prompts(16)[0], initial_prompts(16, seed=1)[0])
