"""The shapes of a checkpoint's arrays -> the configuration that they imply."""

import math
from collections.abc import Mapping

import numpy as np

from tipsomaly.errors import ModelError, explained
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig

PATCH = 14
DEFAULT_TEMPERATURE = 0.005065968260169029
"""transformers' `temperature_init_value`, for text checkpoints that hold no temperature (TIPS v2)."""

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def read_config(
    vision: Shapes, text: Shapes, temperature: float, heads: int | None = None, text_heads: int | None = None
) -> TipsConfig:
    """The configuration that a checkpoint's array shapes imply."""
    try:
        dim, depth = vision["cls_token"][0][-1], _depth(vision, "blocks.")
        grid = math.isqrt(vision["pos_embed"][0][1] - 1)
        swiglu = "blocks.0.mlp.w3.weight" in vision
        hidden = vision["blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc1.weight"][0][1 if swiglu else 0]
        vocab_size, text_dim = text["token_embedding.weight"][0]
        text_depth = _depth(text, "transformer.resblocks.")
        mlp_dim = text["transformer.resblocks.0.mlp.c_fc.weight"][0][0]
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"not a TIPS checkpoint: it has no array {error}") from None
    with explained("not a TIPS checkpoint"):
        heads = heads or default_heads(dim)
        ratio = _mlp_ratio(dim, hidden, swiglu)
    try:
        return TipsConfig(
            VisionConfig(dim, depth, heads, image_size=grid * PATCH, mlp_ratio=ratio, swiglu=swiglu),
            TextConfig(text_dim, text_depth, text_heads or heads, mlp_dim, vocab_size=vocab_size),
            temperature,
        )
    except ValueError as error:
        raise ModelError(f"{error}; give the right number with --heads") from None


def default_heads(dim: int) -> int:
    """TIPS has heads 64 wide, except SO400m: 1152 = 16 x 72."""
    if dim == 1152:
        return 16
    if dim % 64:
        raise ModelError(f"a width of {dim} is no multiple of 64: give the number of attention heads with --heads")
    return dim // 64


def _depth(shapes: Shapes, prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)), default=-1)


def _mlp_ratio(dim: int, hidden: int, swiglu: bool) -> float:
    """The ratio from which transformers computes exactly `hidden`; for SwiGLU it rounds 2/3 up to a multiple of 8."""
    ratio = hidden / dim * (1.5 if swiglu else 1)
    for candidate in (4.0, ratio, math.nextafter(ratio, math.inf), ratio - 1 / dim, ratio + 1 / dim):
        if VisionConfig(dim, 1, 1, mlp_ratio=candidate, swiglu=swiglu).mlp_dim == hidden:
            return candidate
    raise ModelError(f"an MLP of {hidden} for a width of {dim} cannot be written as a ratio")
