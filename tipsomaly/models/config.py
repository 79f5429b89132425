"""Sizes of the two TIPS towers, read from and written to transformers' `config.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower. `image_size` is the side in pixels that the positional grid was trained at."""

    dim: int
    depth: int
    heads: int
    image_size: int = 448
    patch_size: int = 14
    mlp_ratio: float = 4.0
    swiglu: bool = False

    @property
    def grid(self) -> int:
        """Patches along a side at `image_size`."""
        return self.image_size // self.patch_size

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP; SwiGLU keeps two thirds of it, rounded up to a multiple of 8."""
        width = int(self.dim * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.swiglu else width


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower. `max_length` is the number of token ids of a sentence, prompt vectors included."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int = 32000
    max_length: int = 64


LARGEST = {
    **{"dim": 8192, "depth": 128, "heads": 128, "mlp_dim": 65536},
    **{"image_size": 4096, "patch_size": 256, "vocab_size": 2**20, "max_length": 4096},
}
"""Sizes that no released model comes near: a file that asks for more is refused before anything is built."""


@dataclass(frozen=True)
class TipsConfig:
    """Both towers and the softmax temperature of equation 1."""

    vision: VisionConfig
    text: TextConfig
    temperature: float
    bias: float | None = None
    """With it a probability is the sigmoid of cosine / temperature + bias (SigLIP), without it equation 1's softmax."""

    def __post_init__(self) -> None:
        for name, tower in (("vision", self.vision), ("text", self.text)):
            for size, largest in LARGEST.items():
                value = getattr(tower, size, 1)
                if type(value) is not int or not 1 <= value <= largest:
                    raise ValueError(f"{name} tower: {size} must be a whole number from 1 to {largest}, not {value!r}")
        if type(self.vision.swiglu) is not bool:
            raise ValueError(f"swiglu must be true or false, not {self.vision.swiglu!r}")
        if not isinstance(self.vision.mlp_ratio, int | float) or not 0 < self.vision.mlp_ratio <= 16:
            raise ValueError(f"mlp_ratio must be a number up to 16, not {self.vision.mlp_ratio!r}")
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if min(tower.dim, tower.depth, tower.heads) < 1 or tower.dim % tower.heads:
                raise ValueError(f"{name} tower: width {tower.dim} must be a positive multiple of {tower.heads} heads")
        if self.vision.dim != self.text.dim:
            raise ValueError(f"the towers' widths differ: vision {self.vision.dim}, text {self.text.dim}")
        if self.vision.grid < 1:
            raise ValueError(f"image size {self.vision.image_size} is smaller than a patch")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be positive, not {self.temperature}")
        if self.bias is not None and not math.isfinite(self.bias):
            raise ValueError(f"the bias must be a number, not {self.bias}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TipsConfig":
        """Read transformers' `tipsv2` configuration (the content of config.json); unnamed values take its defaults."""
        if config.get("model_type") != "tipsv2":
            raise ValueError(f"config.json is of model type {config.get('model_type')!r}, not 'tipsv2'")
        vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
        fixed = [
            (vision, "num_register_tokens", 1),
            (vision, "hidden_act", "gelu"),
            (vision, "layer_norm_eps", 1e-6),
            (vision, "num_channels", 3),
            (vision, "qkv_bias", True),
            (text, "hidden_act", "relu"),
            (text, "layer_norm_eps", 1e-5),
            (text, "pad_token_id", 0),
            (text, "scale_sqrt_depth", True),
        ]
        for part, key, expected in fixed:
            if part.get(key, expected) != expected:
                raise ValueError(f"config.json asks for {key} = {part[key]!r}; TIPS has {expected!r}")
        return cls(
            VisionConfig(
                dim=vision.get("hidden_size", 768),
                depth=vision.get("num_hidden_layers", 12),
                heads=vision.get("num_attention_heads", 12),
                image_size=_side(vision.get("image_size", 448)),
                patch_size=_side(vision.get("patch_size", 14)),
                mlp_ratio=vision.get("mlp_ratio", 4),
                swiglu=vision.get("use_swiglu_ffn", False),
            ),
            TextConfig(
                dim=text.get("hidden_size", 768),
                depth=text.get("num_hidden_layers", 12),
                heads=text.get("num_attention_heads", 12),
                mlp_dim=text.get("intermediate_size", 3072),
                vocab_size=text.get("vocab_size", 32000),
                max_length=text.get("max_position_embeddings", 64),
            ),
            temperature=config.get("temperature_init_value", 0.005065968260169029),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as transformers writes it: the content of config.json."""
        return {
            "architectures": ["Tipsv2Model"],
            "model_type": "tipsv2",
            "temperature_init_value": self.temperature,
            "vision_config": {
                "model_type": "tipsv2_vision_model",
                "hidden_size": self.vision.dim,
                "num_hidden_layers": self.vision.depth,
                "num_attention_heads": self.vision.heads,
                "image_size": self.vision.image_size,
                "patch_size": self.vision.patch_size,
                "mlp_ratio": self.vision.mlp_ratio,
                "use_swiglu_ffn": self.vision.swiglu,
                "num_register_tokens": 1,
            },
            "text_config": {
                "model_type": "tipsv2_text_model",
                "hidden_size": self.text.dim,
                "num_hidden_layers": self.text.depth,
                "num_attention_heads": self.text.heads,
                "intermediate_size": self.text.mlp_dim,
                "vocab_size": self.text.vocab_size,
                "max_position_embeddings": self.text.max_length,
            },
        }


def _side(size: int | Sequence[int]) -> int:
    """One number from transformers' `int` or `[int, int]`."""
    if isinstance(size, Sequence):
        if len(set(size)) != 1:
            raise ValueError(f"expected a square size, got {list(size)}")
        return int(size[0])
    return int(size)
