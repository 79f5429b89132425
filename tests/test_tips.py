import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Tipsv2Config, Tipsv2Model

from tipsomaly.data.images import load_image, to_pixels
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.tips import Tips

# The rules of every released size, scaled down: width, heads, vision depth, text depth, text MLP, vision options.
SHAPES = {
    "S, B, L": (64, 1, 3, 2, 256, {}),
    "SO400m": (72, 4, 2, 2, 269, {"mlp_ratio": 269 / 72}),  # MLP not 4 x width in either tower
    "g": (96, 3, 2, 2, 384, {"swiglu": True}),
    "g low resolution": (128, 2, 2, 1, 512, {"swiglu": True, "image_size": 56}),
}


def make_config(name: str) -> TipsConfig:
    dim, heads, depth, text_depth, mlp_dim, extra = SHAPES[name]
    vision = VisionConfig(dim, depth, heads, **{"image_size": 112, **extra})
    return TipsConfig(vision, TextConfig(dim, text_depth, heads, mlp_dim, vocab_size=99), temperature=0.01)


def random_model(config: TipsConfig, seed: int = 0) -> Tips:
    torch.manual_seed(seed)
    state = {k: torch.randn(v.shape) * v.shape[-1] ** -0.5 for k, v in Tips(config).state_dict().items()}
    return Tips.from_state_dict(config, state)


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    """Our towers and transformers' with the same random weights."""
    from safetensors.torch import save_file

    model = random_model(make_config(request.param))
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    Tipsv2Config(**model.config.to_dict()).save_pretrained(tmp_path)
    return model, Tipsv2Model.from_pretrained(tmp_path).eval()


@pytest.mark.parametrize("size", [112, 154])
def test_vision_tower_gives_the_reference_tokens(golden, size):
    pixels = torch.stack([to_pixels(load_image(path).image, (size, size)) for path in golden.images]) / 255
    expected = golden.expected
    np.testing.assert_allclose(pixels.mean((2, 3)), expected[f"pixels_mean_{size}"], atol=1e-6)
    tokens = golden.pipe.tips.vision_encoder(pixels)
    for name, token in (
        ("global_object", tokens.object),
        ("global_spatial", tokens.spatial),
        ("patches", tokens.patches.flatten(1, 2)),
    ):
        np.testing.assert_allclose(F.normalize(token, dim=-1), expected[f"{name}_{size}"], atol=1e-5)


def test_text_tower_gives_the_reference_embeddings(golden):
    ids = torch.from_numpy(golden.expected["text_ids"]).long()
    valid = torch.from_numpy(golden.expected["text_paddings"]) == 0
    embeddings = F.normalize(golden.pipe.tips.text_encoder(ids, valid), dim=-1)
    np.testing.assert_allclose(embeddings, golden.expected["text_embeddings"], atol=1e-5)


@pytest.mark.parametrize("height, width", [(112, 112), (70, 154), (14, 14), (196, 98)])
@torch.inference_mode()
def test_vision_tower_equals_transformers(pair, height, width):
    ours, theirs = pair
    pixels = torch.rand(2, 3, height, width)
    tokens, oracle = ours.vision_encoder(pixels), theirs.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(tokens.object, oracle[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.spatial, oracle[:, 1], atol=1e-5, rtol=1e-4)
    assert tokens.patches.shape == (2, height // 14, width // 14, ours.config.vision.dim)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), oracle[:, 2:], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_text_tower_equals_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(1, 99, (3, 64))
    valid = torch.arange(64) < torch.tensor([[1], [17], [64]])
    oracle = theirs.text_model(ids * valid, attention_mask=valid.long()).pooler_output
    torch.testing.assert_close(ours.text_encoder(ids * valid, valid), oracle, atol=1e-5, rtol=1e-4)
    # Padding is masked, so cutting it off changes nothing.
    torch.testing.assert_close(ours.text_encoder(ids[:2, :17], valid[:2, :17]), oracle[:2], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_layers_are_those_of_transformers_with_the_final_norm(pair):
    ours, theirs = pair
    pixels = torch.rand(1, 3, 56, 84)
    hidden = theirs.vision_model(pixels, output_hidden_states=True).hidden_states
    last, first = ours.vision_encoder.layers(pixels, [-1, 0])
    for tokens, state in ((last, hidden[-1]), (first, hidden[1])):
        torch.testing.assert_close(tokens.spatial, theirs.vision_model.layernorm(state)[:, 1], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="layers"):
        ours.vision_encoder.layers(pixels, [99])


@torch.inference_mode()
def test_value_tokens_attend_to_themselves_alone(pair):
    """By the definition: x + ls1(proj(v)), v the values of norm1(x), then the MLP and the final norm."""
    ours, theirs = pair
    pixels, tower = torch.rand(2, 3, 56, 84), theirs.vision_model
    before = tower(pixels, output_hidden_states=True).hidden_states[-2]
    last = ours.vision_encoder.blocks[-1]
    apart = last.attn.qkv(last.norm1(before)).unflatten(-1, (3, last.attn.heads, -1))[:, :, 2].flatten(2)
    after = before + last.ls1.gamma * last.attn.proj(apart)
    expected = ours.vision_encoder.norm(after + last.ls2.gamma * last.mlp(last.norm2(after)))
    [tokens] = ours.vision_encoder.layers(pixels, [-1], readout="values")
    torch.testing.assert_close(tokens.patches.flatten(1, 2), expected[:, 2:], atol=1e-5, rtol=1e-4)
    plain = ours.vision_encoder(pixels)
    assert torch.equal(tokens.spatial, plain.spatial)
    assert not torch.allclose(tokens.patches, plain.patches, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_stays_close(dtype):
    model = random_model(make_config("S, B, L"))
    pixels = torch.rand(1, 3, 70, 98)
    exact = F.normalize(model.vision_encoder(pixels).patches, dim=-1)
    rough = model.vision_encoder.to(dtype)(pixels).patches
    assert rough.dtype == dtype
    assert (F.normalize(rough.float(), dim=-1) * exact).sum(-1).min() > 0.999


def test_config_survives_a_round_trip_and_reads_what_transformers_writes():
    for name in SHAPES:
        config = make_config(name)
        assert TipsConfig.from_dict(config.to_dict()) == config
        assert TipsConfig.from_dict(Tipsv2Config(**config.to_dict()).to_dict()) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "clip"}, "model type 'clip'"),
        ({"temperature_init_value": 0}, "temperature"),
        ({"vision_config": {"hidden_size": 100}}, "multiple of 12 heads"),
        ({"vision_config": {"hidden_size": 384, "num_attention_heads": 6}}, "widths differ"),
        ({"vision_config": {"num_register_tokens": 4}}, "num_register_tokens"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act"),
    ],
)
def test_other_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TipsConfig.from_dict({"model_type": "tipsv2", **change})


def test_loading_is_strict():
    config = make_config("S, B, L")
    state = random_model(config).state_dict()
    missing = {k: v for k, v in state.items() if k != "vision_encoder.blocks.1.ls1.gamma"}
    with pytest.raises(ValueError, match=r"lacks 1 .* 'vision_encoder.blocks.1.ls1.gamma'"):
        Tips.from_state_dict(config, missing)
    with pytest.raises(ValueError, match=r"unexpected tensors, first 'head.weight'"):
        Tips.from_state_dict(config, {**state, "head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'text_encoder.ln_final.bias' has shape \(3,\)"):
        Tips.from_state_dict(config, {**state, "text_encoder.ln_final.bias": torch.zeros(3)})


@pytest.mark.parametrize("shape", [(1, 3, 113, 112), (1, 1, 112, 112), (3, 112, 112), (1, 3, 0, 14)])
def test_odd_pixels_are_refused(shape):
    with pytest.raises(ValueError, match=r"pixels of shape|multiples of 14"):
        random_model(make_config("S, B, L")).vision_encoder(torch.zeros(shape))


@pytest.mark.parametrize(
    "dim, depth, heads, swiglu, parameters", [(1024, 24, 16, False, 303e6), (1536, 40, 24, True, 1.1e9)]
)
def test_large_sizes_have_the_published_number_of_parameters(dim, depth, heads, swiglu, parameters):
    from tipsomaly.models.tips import VisionTower

    with torch.device("meta"):
        tower = VisionTower(VisionConfig(dim, depth, heads, swiglu=swiglu))
    assert sum(p.numel() for p in tower.parameters()) == pytest.approx(parameters, rel=0.04)
