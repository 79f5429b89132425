"""What "auto" and "fastest" choose for a device."""

import pytest
import torch

from tipsomaly.models.device import bfloat16_is_faster, choose_device, choose_dtype


def test_auto_choices_fit_the_device():
    device = choose_device("auto")
    assert device.type in ("cpu", "cuda", "mps")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("bfloat16", device) == torch.bfloat16


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    chosen = choose_dtype("auto", torch.device("cuda"))
    assert chosen == (torch.bfloat16 if native else torch.float16)


@pytest.mark.parametrize("supported", [False, True])
def test_the_fastest_dtype_of_a_cpu_is_measured(monkeypatch, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    bfloat16_is_faster.cache_clear()
    assert bfloat16_is_faster() in ((False,) if not supported else (False, True))
    monkeypatch.setattr("tipsomaly.models.device.bfloat16_is_faster", lambda: supported)
    fastest = choose_dtype("fastest", torch.device("cpu"))
    assert fastest == (torch.bfloat16 if supported else torch.float32)
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
