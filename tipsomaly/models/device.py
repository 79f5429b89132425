"""Where a model runs and in which number format; copies to and from a GPU."""

import time
from functools import lru_cache

import torch
from torch import Tensor

from tipsomaly.errors import OptionError, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """A copy to a GPU, from pinned memory, that the CPU does not wait for."""
    if device.type == "cuda" and pixels.device.type == "cpu":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def to_cpu(tensor: Tensor) -> Tensor:
    """A copy from a GPU, to pinned memory, that nobody waits for yet; elsewhere one that is done."""
    return tensor.to("cpu", non_blocking=tensor.device.type == "cuda")


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """A GPU if "auto" and there is one; OptionError for a device that this machine has not."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {str(device)!r} cannot be used: {one_line(error)}") from None
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """If "auto", bfloat16 on a GPU that has it, float16 on an older one, and float32 elsewhere, so that a score does
    not depend on the processor; if "fastest", bfloat16 also on a CPU where it is faster."""
    if dtype in ("auto", "fastest"):
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        faster = dtype == "fastest" and device.type == "cpu" and bfloat16_is_faster()
        return torch.bfloat16 if faster else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"unknown dtype {name!r}: choose auto, fastest, {', '.join(DTYPES)}")
    return DTYPES[name]


@lru_cache(maxsize=1)
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 at least 1.5 times as fast as of float32: measured once, in
    about a tenth of a second, and only if the processor has instructions for it."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(4):
        for dtype in seconds:
            left, right = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
            start = time.perf_counter()
            left @ right
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] > 1.5 * seconds[torch.bfloat16]
