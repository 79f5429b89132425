"""DAPO against an independent implementation in plain torch: see golden/dapo/README.md."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tipsomaly.detection import scoring
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.method import TextEncoder, TrainingBatch
from tipsomaly.prompts.prototypes import embed, pair, probabilities


@pytest.fixture(scope="module")
def dapo(golden):
    folder = golden.images[0].parent / "dapo"
    case, expected = json.loads((folder / "case.json").read_text()), np.load(folder / "expected.npz")
    start = {name.removeprefix("start_"): torch.from_numpy(expected[name]) for name in expected if "start_" in name}
    method = Dapo(
        start["normal"],
        start["abnormal"],
        start["text_tokens"],
        start["image_tokens"],
        kinds=case["defects"],
        temperature=case["temperature"],
        normal_sentence=case["normal_sentence"],
        abnormal_sentence=case["abnormal_sentence"],
        mix=case["mix"],
        local_weight=case["local_weight"],
    )
    words = TextEncoder(golden.pipe.tips.text_encoder, golden.pipe.tokenizer)
    pixels = torch.from_numpy(expected["pixels"]).float() / 255
    return SimpleNamespace(case=case, expected=expected, method=method, words=words, pixels=pixels)


def without(method: Dapo, **changes) -> Dapo:
    tensors = {**dict(method.named_parameters()), **changes}
    return Dapo(
        *(tensors.get(name) for name in ("normal", "abnormal", "text_tokens", "vision_tokens")),
        **method.settings(),
        temperature=method.temperature,
    )


def close(ours, expected):
    np.testing.assert_allclose(ours.detach(), expected, atol=1e-5)


@torch.no_grad()
def test_the_forward_pass_equals_the_reference(golden, dapo):
    expected, tau, tower = dapo.expected, dapo.case["temperature"], golden.pipe.tips.vision_encoder
    prototypes = dapo.method.prototypes(dapo.words)
    close(prototypes, expected["prototypes"])
    close(pair(prototypes), expected["pair"])
    [tokens] = tower.layers(dapo.pixels, [-1], dapo.method.image_tokens)
    close(F.normalize(tokens.object, dim=-1), expected["object"])
    close(F.normalize(tokens.spatial, dim=-1), expected["spatial"])
    close(F.normalize(tokens.patches, dim=-1).flatten(1, 2), expected["patches"])
    types = probabilities(tokens.patches, prototypes, tau)
    close(types, expected["patch_types"].transpose(0, 2, 3, 1))
    patch_map = scoring.anomaly_probability(tokens.patches, prototypes, tau)
    close(patch_map, expected["patch_map"])
    close(scoring.anomaly_probability(tokens.spatial, pair(prototypes), tau), expected["global_score"])
    close(scoring.anomaly_probability(tokens.object, pair(prototypes), tau), expected["object_score"])
    size = dapo.pixels.shape[2:]
    close(scoring.anomaly_map(patch_map, tuple(size), sigma=dapo.case["sigma"]), expected["anomaly_map"])
    peaks = types.flatten(1, 2)[range(3), patch_map.flatten(1).argmax(1), 1:].argmax(-1)
    assert peaks.tolist() == expected["type_at_peak"].tolist()
    untouched = tower(dapo.pixels)
    close(probabilities(untouched.patches, prototypes, tau).permute(0, 3, 1, 2), expected["frozen_patch_types"])
    close(scoring.anomaly_probability(untouched.spatial, pair(prototypes), tau), expected["frozen_global_score"])


def test_without_tokens_in_the_blocks_only_the_context_is_learned(dapo):
    off = without(dapo.method, text_tokens=None, vision_tokens=None)
    assert off.image_tokens is None
    close(off.prototypes(dapo.words), dapo.expected["frozen_prototypes_text_off"])


def test_an_unseen_kind_changes_only_its_own_prototype(dapo):
    seen = dapo.method.prototypes(dapo.words)
    unseen = dapo.method.of_kinds(dapo.case["unseen"]).prototypes(dapo.words)
    close(unseen, dapo.expected["unseen_prototypes"])
    hole = [kinds.index("hole") + 1 for kinds in (dapo.case["defects"], dapo.case["unseen"])]
    close(unseen[[0, hole[1]]], seen[[0, hole[0]]].detach())


@pytest.mark.parametrize("prefix", ["train_", "train_frozen_"])
def test_three_steps_equal_the_reference(golden, dapo, prefix):
    expected, case = dapo.expected, dapo.case
    frozen = {"vision_tokens": None} if "frozen" in prefix else {}
    method = without(dapo.method, **frozen).requires_grad_()
    optimizer = torch.optim.Adam(method.parameters(), lr=case["learning_rate"], betas=(0.5, 0.999))
    masks, labels = torch.from_numpy(expected["masks"]).float(), torch.tensor([int(c > 0) for c in case["classes"]])
    kinds = tuple(case["defects"][c - 1] if c else "" for c in case["classes"])
    names = {"normal": "normal", "abnormal": "abnormal", "text_tokens": "text_tokens", "vision_tokens": "image_tokens"}
    history = []
    for step in range(3):
        [tokens] = golden.pipe.tips.vision_encoder.layers(dapo.pixels, [-1], method.image_tokens)
        parts = method.losses(TrainingBatch(tokens, masks, labels, kinds), dapo.words)
        optimizer.zero_grad()
        parts["total"].backward()
        if step == 0:
            for ours, parameter in method.named_parameters():
                close(parameter.grad, expected[f"{prefix}gradient_{names[ours]}"])
        optimizer.step()
        history.append([parts[name].item() for name in case["loss_columns"]])
    np.testing.assert_allclose(history, expected[f"{prefix}losses"], atol=1e-4)
    for ours, parameter in method.named_parameters():
        np.testing.assert_allclose(parameter.detach(), expected[f"{prefix}{names[ours]}"], atol=1e-4)


def test_one_kind_without_tokens_in_the_blocks_is_tipsomaly(golden, dapo):
    """Learned vectors before a sentence a state, here written out with the functions of that method."""
    off = without(
        dapo.method,
        text_tokens=None,
        vision_tokens=None,
        normal=dapo.method.normal[:1],
        abnormal=dapo.method.abnormal[:1],
    ).of_kinds(["hole"])
    pair_of_states = torch.cat(
        [
            embed(*dapo.words, ["normal object"], off.normal[0]),
            embed(*dapo.words, ["hole anomaly object"], off.abnormal[0]),
        ]
    )
    prototypes = off.prototypes(dapo.words)
    close(prototypes, pair_of_states)
    tokens = golden.pipe.tips.vision_encoder(dapo.pixels).patches
    similarity = F.normalize(tokens, dim=-1) @ pair_of_states.T / 0.07
    assert torch.equal(pair(prototypes), prototypes)
    close(scoring.anomaly_probability(tokens, prototypes, 0.07), similarity.softmax(-1)[..., 1])


@torch.no_grad()
def test_a_constant_picture_is_finite(golden, dapo):
    [tokens] = golden.pipe.tips.vision_encoder.layers(torch.zeros(1, 3, 56, 84), [-1], dapo.method.image_tokens)
    prototypes = dapo.method.prototypes(dapo.words)
    assert tokens.patches.shape == (1, 4, 6, 128)
    patches = scoring.anomaly_probability(tokens.patches, prototypes, 0.0042)
    assert patches.isfinite().all()
    assert patches.max() <= 1


def test_prototypes_for_each_picture_score_as_alone():
    torch.manual_seed(0)
    tokens, prototypes = torch.randn(3, 4, 5, 16), F.normalize(torch.randn(3, 4, 16), dim=-1)
    together = probabilities(tokens, prototypes, 0.1)
    for i in range(3):
        torch.testing.assert_close(together[i], probabilities(tokens[i], prototypes[i], 0.1))
    torch.testing.assert_close(probabilities(tokens[:, 0, 0], prototypes, 0.1), together[:, 0, 0])
    assert pair(prototypes).shape == (3, 2, 16)
    alone = scoring.anomaly_probability(tokens[:, 0, 0], prototypes, 0.1)
    torch.testing.assert_close(alone, 1 - together[:, 0, 0, 0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kinds": []}, "at least one"),
        ({"kinds": ["hole", " _ "]}, "at least one"),
        ({"kinds": "hole"}, "in a list"),
        ({"abnormal_sentence": "anomaly"}, "exactly once"),
        ({"mix": 1.5}, "from 0 to 1"),
    ],
)
def test_odd_settings_are_refused(dapo, change, message):
    with pytest.raises(ValueError, match=message):
        Dapo(dapo.method.normal, dapo.method.abnormal, **{**dapo.method.settings(), "temperature": 0.1, **change})


def test_small_random_numbers_follow_their_seed(golden):
    one, same, other = (Dapo.start(golden.config, temperature=0.1, seed=seed, image_tokens=4) for seed in (1, 1, 2))
    assert one.normal.shape == one.abnormal.shape == (10, 5, 128)
    assert one.text_tokens.shape == (2, 4, 128)
    assert one.vision_tokens.shape == (3, 4, 128)
    assert torch.equal(one.normal, same.normal)
    assert not torch.equal(one.normal, other.normal)
    assert one.normal.std() == pytest.approx(0.02, rel=0.1)
    bound = (6 / (3 * 14 * 14 + 128)) ** 0.5
    assert 0.9 * bound < one.vision_tokens.abs().max() <= bound
