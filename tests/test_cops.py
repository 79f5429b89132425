"""CoPS against an independent implementation in plain torch: see golden/cops/README.md."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tipsomaly.detection import scoring
from tipsomaly.models.encoder import ImageTokens, LayerTokens
from tipsomaly.prompts.cops import Cops, alignment_weight, distances
from tipsomaly.prompts.method import TextEncoder, TrainingBatch


def start_values(shapes: dict[str, tuple[int, ...]], dim: int, seed: int, scale: float) -> dict[str, torch.Tensor]:
    """The rule of the golden case."""
    random, tensors = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        z = random.standard_normal(shapes[name])
        if "." not in name:
            z = z * scale
        elif len(shapes[name]) == 2:
            z = z * 0.7 / np.sqrt(dim)
        else:
            z = 1 + 0.2 * z if name.endswith(("ln_1.weight", "ln_2.weight")) else 0.1 * z
        tensors[name] = torch.tensor(z, dtype=torch.float32)
    return tensors


@pytest.fixture(scope="module")
def cops(golden):
    folder = golden.images[0].parent / "cops"
    case, expected = json.loads((folder / "case.json").read_text()), np.load(folder / "expected.npz")
    named = ("pool", "alpha", "beta", "sentence", "heads", "local_weight", "reconstruction_weight")
    settings = {**{name: case[name] for name in named}, "category_rows": case["categories"]}
    sizes = {name: case[name] for name in ("context", "states", "text_tokens", "samples")}
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in Cops.start(golden.config, temperature=1, **sizes, **settings).named_parameters()
    }
    tensors = start_values(shapes, golden.case["dim"], case["seed"], case["scale"])
    tensors["noise"] = torch.from_numpy(expected["noise"])
    pixels = torch.from_numpy(expected["pixels"])
    return SimpleNamespace(
        case=case,
        expected=expected,
        tensors=tensors,
        settings=settings,
        method=Cops.from_tensors(tensors, settings, case["temperature"], {}),
        encode=TextEncoder(golden.pipe.tips.text_encoder, golden.pipe.tokenizer),
        tokens=ImageTokens(*(token.clone() for token in golden.pipe.encode(pixels))),
        size=tuple(pixels.shape[2:]),
    )


def close(ours, expected, atol=1e-4):
    np.testing.assert_allclose(ours.detach().reshape(expected.shape), expected, atol=atol)


def with_options(cops, **options) -> Cops:
    return Cops.from_tensors(cops.tensors, cops.settings | options, cops.case["temperature"], {})


def scores(cops, method, tokens):
    """What a pipeline makes of it: patch map, global and image score."""
    tau = cops.case["temperature"]
    tokens, prototypes, weight = method.condition(tokens, cops.encode)
    patch_map = scoring.anomaly_probability(tokens.patches, prototypes, tau) * weight
    parts = {
        "object": scoring.anomaly_probability(tokens.object, prototypes, tau),
        "spatial": scoring.anomaly_probability(tokens.spatial, prototypes, tau),
        "local": patch_map.flatten(1).amax(1),
    }
    return patch_map, parts, sum(share * parts[name] for name, share in method.image_score.items())


@torch.no_grad()
def test_each_part_of_the_forward_pass_equals_the_reference(cops):
    method, expected = cops.method, cops.expected
    patches = method.neighbourhood(cops.tokens.patches)
    close(patches, expected["pooled_patches"])
    states = method.synthesize_states(patches)
    close(states[:, 0], expected["states_normal"])
    close(states[:, 1], expected["states_abnormal"])
    for state, found in zip(("normal", "abnormal"), distances(patches, states).unbind(1), strict=True):
        close(found, expected[f"distance_{state}"])
    categories = method.sample_categories(cops.tokens.spatial)
    close(categories, expected["categories"])
    close(method.sentence_embeddings(cops.encode, states, categories), expected["sentence_embeddings"])
    for found, name in zip(method.encoder(cops.tokens.spatial), ("mean", "log_var"), strict=True):
        close(found, expected[name])


@torch.no_grad()
def test_maps_and_scores_equal_the_reference(cops):
    expected, tau = cops.expected, cops.case["temperature"]
    tokens, prototypes, weight = cops.method.condition(cops.tokens, cops.encode)
    close(prototypes, expected["prototypes"])
    close(weight, expected["weight"])
    close(scoring.anomaly_probability(tokens.patches, prototypes, tau), expected["patch_probability"])
    patch_map, parts, score = scores(cops, cops.method, cops.tokens)
    close(patch_map, expected["patch_map"])
    close(parts["object"], expected["object_score"])
    close(parts["spatial"], expected["global_score"])
    close(parts["local"], expected["local_score"])
    close(score, expected["score"])
    close(scoring.anomaly_map(patch_map, cops.size, sigma=cops.case["sigma"]), expected["anomaly_map"])


@torch.no_grad()
def test_exchanged_states_are_those_of_the_released_code(cops):
    exchanged = with_options(cops, ests="exchanged")
    close(exchanged.condition(cops.tokens, cops.encode).prototypes, cops.expected["swapped_prototypes"])
    patch_map, _, score = scores(cops, exchanged, cops.tokens)
    close(patch_map, cops.expected["swapped_patch_map"])
    close(score, cops.expected["swapped_score"])


def test_three_steps_equal_the_reference(cops):
    expected, case = cops.expected, cops.case
    method = with_options(cops).requires_grad_()
    optimizer = torch.optim.Adam(method.parameters(), lr=case["learning_rate"], betas=(0.5, 0.999))
    batch = TrainingBatch(cops.tokens, torch.from_numpy(expected["masks"]).float(), torch.tensor(case["labels"]))
    history = []
    for step, noise in enumerate(expected["training_noise"]):
        terms = method.losses(batch, cops.encode, noise=torch.from_numpy(noise))
        optimizer.zero_grad()
        terms["total"].backward()
        if step == 0:
            for name, parameter in method.named_parameters():
                if (gradient := f"train_gradient_{name}") in expected:
                    close(parameter.grad, expected[gradient], atol=1e-5)
        optimizer.step()
        history.append([terms[column].item() for column in case["loss_columns"]])
    np.testing.assert_allclose(history, expected["train_losses"], rtol=1e-5, atol=1e-4)
    for name, parameter in method.named_parameters():
        ours, theirs = parameter.detach(), torch.from_numpy(expected[f"train_{name}"])
        if name == "extractor.attn.in_proj_bias":  # attention does not depend on the bias of its keys, the middle third
            ours, theirs = (bias.view(3, -1)[[0, 2]] for bias in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_file_has_constants_in_place_of_the_autoencoder_and_scores_the_same(cops):
    tensors = cops.method.tensors()
    assert not any(name.startswith(("encoder", "decoder", "noise")) for name in tensors)
    assert tensors["categories"].shape == (cops.case["samples"], 128)
    read = Cops.from_tensors(tensors, cops.method.settings(), cops.method.temperature, {"seed": "0"})
    assert read.options == cops.method.options
    found, again = (method.condition(cops.tokens, cops.encode) for method in (cops.method, read))
    assert torch.equal(found.prototypes, again.prototypes)
    assert torch.equal(found.weight, again.weight)
    batch = TrainingBatch(cops.tokens, torch.zeros(3, *cops.size), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="training begins anew"):
        read.losses(batch, cops.encode)


@torch.no_grad()
def test_a_picture_scores_the_same_alone_and_among_others_in_any_order(golden, cops):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(16, 3, 70, 98, generator=generator)
    tokens = golden.pipe.tips.vision_encoder(pixels)
    order = torch.randperm(16, generator=generator)
    maps, _, score = scores(cops, cops.method, tokens)
    shuffled, *_ = scores(cops, cops.method, ImageTokens(*(token[order] for token in tokens)))
    torch.testing.assert_close(shuffled, maps[order], rtol=0, atol=1e-6)
    for i in (0, 15):
        alone, _, own = scores(cops, cops.method, ImageTokens(*(token[i : i + 1] for token in tokens)))
        assert alone.shape == (1, 5, 7)
        torch.testing.assert_close(alone[0], maps[i], rtol=0, atol=1e-6)
        torch.testing.assert_close(own[0], score[i], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_constant_picture_is_finite(golden, cops):
    tokens = golden.pipe.tips.vision_encoder(torch.full((1, 3, 56, 84), 0.5))
    even = tokens._replace(patches=torch.ones_like(tokens.patches))
    for some in (tokens, even):
        patch_map, _, score = scores(cops, cops.method, some)
        assert patch_map.isfinite().all()
        assert 0 <= score.item() <= 1
    torch.testing.assert_close(alignment_weight(torch.ones(1, 2, 4, 6), 0.25), torch.full((1, 4, 6), 0.75))


def test_the_weight_is_large_far_from_normal_and_near_to_abnormal():
    normal = torch.tensor([[0.2, 0.4, 0.6]])
    weight = alignment_weight(torch.stack([normal, 1 - normal])[None], alpha=0.26)
    torch.testing.assert_close(weight, torch.tensor([[[0.0, 0.5, 1.0]]]))
    # Each picture has its own scale.
    both = torch.stack([torch.stack([normal, 1 - normal]), torch.stack([normal / 10, normal / 10])])
    torch.testing.assert_close(alignment_weight(both, 0.26)[0], weight[0])


@torch.no_grad()
def test_each_part_can_be_left_out(cops):
    full = cops.method.condition(cops.tokens, cops.encode)
    static = with_options(cops, ests="off", icts="off", saga=False)
    tokens, prototypes, weight = static.condition(cops.tokens, cops.encode)
    assert weight is None
    assert dict(static.image_score) == {"spatial": 1}
    torch.testing.assert_close(prototypes[0], prototypes[2])  # nothing of the picture is left
    assert not torch.allclose(full.prototypes[0], full.prototypes[2], atol=1e-4)
    layers = LayerTokens(cops.tensors["text_tokens"], overwrite=True)
    by_hand = [cops.encode(["."], cops.tensors[state], layers) for state in ("normal", "abnormal")]
    torch.testing.assert_close(prototypes[0], torch.cat(by_hand), rtol=0, atol=1e-6)
    posterior = with_options(cops, icts="posterior").sample_categories(tokens.spatial)
    assert posterior.shape == (3, cops.case["samples"], 128)
    assert not torch.allclose(posterior[0], posterior[1])


def test_noise_comes_from_the_generator_alone(cops):
    batch = TrainingBatch(cops.tokens, torch.zeros(3, *cops.size), torch.zeros(3, dtype=torch.int64))

    def total(seed):
        with torch.no_grad():
            return cops.method.losses(batch, cops.encode, torch.Generator().manual_seed(seed))

    first, same, other = total(1), total(1), total(2)
    assert first["scatter"] == 0  # nothing is defective here
    assert first["reconstruction"] == same["reconstruction"] != other["reconstruction"]
    assert next(iter(first)) == "total"


def test_start_values_follow_the_specification_and_the_seed(golden):
    one, same, other = (Cops.start(golden.config, temperature=0.1, seed=seed) for seed in (1, 1, 2))
    shapes = {name: tuple(tensor.shape) for name, tensor in one.named_parameters() if "." not in name}
    assert shapes == {
        "normal": (14, 128),
        "abnormal": (14, 128),
        "queries_normal": (6, 128),
        "queries_abnormal": (6, 128),
        "text_tokens": (1, 4, 128),  # the tower has two blocks
    }
    assert one.extractor.attn.heads == 2
    assert one.normal.std() == pytest.approx(0.02, rel=0.1)
    assert one.noise.std() == pytest.approx(1, rel=0.1)
    assert one.extractor.ln_1.weight.eq(1).all()
    assert one.extractor.attn.in_proj_weight.abs().max() == pytest.approx((6 / (4 * 128)) ** 0.5, rel=0.01)
    for (name, tensor), again, differs in zip(
        one.state_dict().items(), same.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, again)
        assert name.endswith("bias") or ".ln_" in name or not torch.equal(tensor, differs)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pool": 4}, "odd"),
        ({"pool": "5"}, "whole number"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1"),
        ({"beta": float("nan")}, "beta must be from 0 to 1"),
        ({"sentence": ""}, "1 to 200"),
        ({"heads": 3}, "multiple"),
        ({"category_rows": 7}, "cannot hold"),
        ({"ests": "both"}, "own, exchanged, off"),
        ({"colour": 1}, "no setting 'colour'"),
    ],
)
def test_odd_settings_are_refused(cops, change, message):
    with pytest.raises(ValueError, match=message):
        with_options(cops, **change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"normal": None}, "'normal' is missing"),
        ({"abnormal": torch.zeros(9, 64)}, "'abnormal' is missing"),
        ({"text_tokens": torch.zeros(2, 128)}, "'text_tokens' is missing or has not 3 axes"),
        ({"extractor.fc1.weight": torch.zeros(128, 64)}, "fc1.weight"),
        ({"noise": torch.zeros(1000, 128)}, "1 to 256 samples"),
        ({"more": torch.zeros(1)}, "'more'"),
    ],
)
def test_odd_tensors_are_refused(cops, change, message):
    tensors = {name: tensor for name, tensor in (cops.tensors | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        Cops.from_tensors(tensors, cops.settings, 0.1, {})
    with pytest.raises(ValueError, match="temperature"):
        Cops.from_tensors(cops.tensors, cops.settings, None, {})
