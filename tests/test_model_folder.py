"""A model folder is transformers' own, in either precision."""

import numpy as np
import pytest
import torch
from test_tips import SHAPES, make_config, random_model

from tipsomaly import ModelError
from tipsomaly.models.convert import convert
from tipsomaly.models.folder import ModelFolder, write_configs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("original", [True, False])
def test_what_transformers_saves_opens_here(golden, tmp_path, shape, original):
    from transformers import Tipsv2Model

    model = random_model(make_config(shape))
    write_configs(tmp_path / "ours", model.config, (model.config.vision.image_size,) * 2)
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    theirs = Tipsv2Model.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        theirs.temperature.fill_(0.02)  # as if it had been trained on
    size = "5GB" if original else "100KB"
    theirs.save_pretrained(tmp_path / "theirs", save_original_format=original, max_shard_size=size)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() != original
    again = ModelFolder(tmp_path / "theirs").read_tips(torch.device("cpu"), torch.float32)
    assert again.config.temperature == pytest.approx(0.02)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_tokenizer_is_transformers_too(golden):
    pytest.importorskip("google.protobuf")
    from transformers import AutoTokenizer

    sentences = ["a photo of a Damaged nut.", "two  spaces"]
    ids = AutoTokenizer.from_pretrained(golden.folder)(sentences, padding="max_length", truncation=True)["input_ids"]
    assert ids == golden.pipe.tokenizer(sentences)[0].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_conversion_to_half_precision_rounds(golden, tmp_path, dtype, tolerance):
    from safetensors.torch import load_file

    convert(golden.vision_npz, golden.text_npz, golden.tokenizer, tmp_path, dtype=dtype)
    exact, rough = (load_file(folder / "model.safetensors") for folder in (golden.folder, tmp_path))
    for name, value in exact.items():
        assert rough[name].dtype == getattr(torch, dtype)
        assert torch.equal(rough[name], value.to(rough[name].dtype)), name
        torch.testing.assert_close(rough[name].float(), value, rtol=tolerance, atol=1e-6)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (golden.folder / "model.safetensors").stat().st_size


def test_numbers_that_a_dtype_cannot_hold_are_refused(golden, tmp_path):
    arrays = dict(np.load(golden.vision_npz))
    np.savez(tmp_path / "v.npz", **{**arrays, "norm.bias": arrays["norm.bias"] + 1e6})
    with pytest.raises(ModelError, match=r"'norm\.bias' has values that float16 cannot hold"):
        convert(tmp_path / "v.npz", golden.text_npz, golden.tokenizer, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out" / "model.safetensors").exists()
