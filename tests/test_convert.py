import contextlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file

from tipsomaly import LearnedPrompts, ModelError, Pipeline
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.convert import convert
from tipsomaly.models.shapes import default_heads
from tipsomaly.prompts.find import convert_prompts


def test_the_folder_holds_the_same_numbers_and_sizes(golden):
    state = load_file(golden.folder / "model.safetensors")
    for tower, path in (("vision", golden.vision_npz), ("text", golden.text_npz)):
        arrays = np.load(path)
        for name in set(arrays.files) - {"temperature"}:
            assert np.array_equal(state.pop(f"{tower}_encoder.{name}"), arrays[name])
    assert not state
    config = json.loads((golden.folder / "config.json").read_text())
    assert TipsConfig.from_dict(config).vision == golden.config.vision
    assert TipsConfig.from_dict(config).text == golden.config.text
    assert config["temperature_init_value"] == pytest.approx(golden.case["temperature"])


@pytest.mark.parametrize("swiglu, mlp_ratio, heads", [(True, 4.0, 3), (False, 4304 / 1152, 4), (False, 4.0, 6)])
def test_transformers_opens_the_folder_with_the_same_outputs(golden, tmp_path, swiglu, mlp_ratio, heads):
    from transformers import Tipsv2Model

    config = TipsConfig(
        VisionConfig(96, 2, heads, image_size=70, mlp_ratio=mlp_ratio, swiglu=swiglu),
        TextConfig(96, 2, heads, 200, vocab_size=512),
        0.0042,
    )
    vision, text = write_checkpoint(tmp_path, config, seed=5)
    convert(vision, text, golden.tokenizer, tmp_path / "out", heads=heads)
    pipe = Pipeline.from_pretrained(tmp_path / "out", mode="fixed")
    oracle = Tipsv2Model.from_pretrained(tmp_path / "out").eval()
    assert oracle.temperature.item() == pytest.approx(0.0042)
    pixels = torch.rand(2, 3, 84, 56)
    ids, valid = pipe.tokenizer(["a photo of a damaged nut.", "x"])
    with torch.inference_mode():
        tokens, states = pipe.encode(pixels), oracle.vision_model(pixels).last_hidden_state
        texts = oracle.text_model(ids, attention_mask=valid.long()).pooler_output
        torch.testing.assert_close(tokens.spatial, states[:, 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens.patches.flatten(1, 2), states[:, 2:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pipe.tips.text_encoder(ids, valid), texts, atol=1e-5, rtol=1e-4)


def test_heads_follow_the_release_unless_given(golden, tmp_path):
    assert [default_heads(dim) for dim in (384, 768, 1024, 1152, 1536)] == [6, 12, 16, 16, 24]
    with pytest.raises(ModelError, match="--heads"):
        default_heads(100)
    other = convert(golden.vision_npz, golden.text_npz, golden.tokenizer, tmp_path / "m", heads=4, text_heads=8)
    assert (other.vision.heads, other.text.heads) == (4, 8)
    with pytest.raises(ModelError, match="multiple of 3 heads"):
        convert(golden.vision_npz, golden.text_npz, golden.tokenizer, tmp_path / "n", heads=3)


@pytest.mark.parametrize("native, default", [(448, 518), (224, 224)])
def test_the_default_input_size_is_the_papers(golden, tmp_path, native, default):
    config = TipsConfig(
        VisionConfig(64, 1, 1, image_size=native), TextConfig(64, 1, 1, 64, vocab_size=512), temperature=0.0042
    )
    convert(*write_checkpoint(tmp_path, config, 0), golden.tokenizer, tmp_path / "m")
    assert Pipeline.from_pretrained(tmp_path / "m", mode="fixed").image_size == (default, default)


def test_broken_checkpoints_are_refused_and_leave_no_model(golden, tmp_path):
    arrays = dict(np.load(golden.vision_npz))
    np.savez(tmp_path / "missing.npz", **{k: v for k, v in arrays.items() if k != "blocks.1.ls2.gamma"})
    np.savez(tmp_path / "extra.npz", **arrays, head=np.zeros(3, np.float32))
    np.savez(tmp_path / "pickled.npz", **{**arrays, "norm.bias": np.array([{}], dtype=object)})
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(golden.vision_npz.read_bytes()[:5000])
    content = bytearray(golden.vision_npz.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    for name, message in (
        ("missing", "vision_encoder.blocks.1.ls2.gamma: the file has None"),
        ("extra", "vision_encoder.head: .* the towers want None"),
        ("pickled", "norm.bias"),
        ("other", "not a TIPS checkpoint"),
        ("cut", "not an npz file"),
        ("flipped", "cannot be read"),
        ("none", "no such file"),
    ):
        out = tmp_path / f"out-{name}"
        with pytest.raises(ModelError, match=message):
            convert(tmp_path / f"{name}.npz", golden.text_npz, golden.tokenizer, out)
        assert not list(out.glob("model*"))
    with pytest.raises(ValueError, match="SentencePiece"):
        convert(golden.vision_npz, golden.text_npz, golden.vision_npz, tmp_path / "out")


@pytest.mark.parametrize("bare", [True, False])
def test_both_published_shapes_of_prompts_are_read(tmp_path, bare):
    pair = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(8, 16)) for _ in range(2)])
    torch.save(pair if bare else {"learnable_prompts": pair}, tmp_path / "p.pth")
    convert_prompts(tmp_path / "p.pth", tmp_path / "p.safetensors", metadata={"trained_on": "mvtec"})
    prompts = LearnedPrompts.load(tmp_path / "p.safetensors")
    assert torch.equal(prompts.normal, pair[0])
    assert torch.equal(prompts.abnormal, pair[1])
    assert prompts.ensemble == "industrial"
    assert prompts.metadata == {"source": "p.pth", "name": "p", "trained_on": "mvtec"}


class _Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")  # torch, before it refuses the file
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, zipped):
    marker = tmp_path / "ran"
    content = {"learnable_prompts": _Malicious(marker)}
    if zipped:
        torch.save(content, tmp_path / "evil.pth")
    else:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match="refused"):
        convert_prompts(tmp_path / "evil.pth", tmp_path / "p.safetensors")
    assert not marker.exists()
    assert not (tmp_path / "p.safetensors").exists()
    with contextlib.suppress(Exception):
        torch.load(tmp_path / "evil.pth", weights_only=False)
    assert marker.exists()  # the file is truly malicious


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(8, 16),
        {"state": 1},
        [torch.zeros(8, 16)],
        [torch.zeros(8, 16), torch.zeros(7, 16)],
        [torch.zeros(8, 16, dtype=torch.int64)] * 2,
        [torch.full((8, 16), torch.nan)] * 2,
        ["a", "b"],
    ],
)
def test_other_pickles_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "p.pth")
    with pytest.raises(ModelError, match=r"p\.pth: "):
        convert_prompts(tmp_path / "p.pth", tmp_path / "p.safetensors")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_files_that_are_no_pickles_are_refused(tmp_path, content):
    (tmp_path / "p.pth").write_bytes(content)
    with pytest.raises(ModelError, match="refused"):
        convert_prompts(tmp_path / "p.pth", tmp_path / "p.safetensors")
