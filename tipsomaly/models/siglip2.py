"""SigLIP 2 (Tschannen et al., 2025) as an `Encoder` (table 9, section 7.4.5 of the paper), through transformers.

Checkpoints of a fixed resolution, such as google/siglip2-large-patch16-512, are `SiglipModel` there: a ViT without
global tokens, whose patches an attention pool makes one token, and a text tower that reads its last position.
transformers is an extra, `tipsomaly[siglip2]`, imported when a model is read. Nothing of a folder is ever run.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.errors import ModelError, explained
from tipsomaly.files import sha256
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.encoder import ImageTokens, LayerTokens, Readout
from tipsomaly.models.folder import ModelFolder

PACKAGE_MISSING = "SigLIP 2 needs transformers: pip install 'tipsomaly[siglip2]'"
NO_LAYER_TOKENS = "SigLIP 2 takes no learned tokens in its blocks: DAPO and CoPS need a TIPS"


class VisionSide(nn.Module):
    """transformers' vision tower. It has no spatial token: both global tokens are the pooled output."""

    model: Any

    def __init__(self, model: Any, config: VisionConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.encoder.layers

    def layers(
        self, pixels: Tensor, indices: Sequence[int], learned: LayerTokens | None = None, readout: Readout = "tokens"
    ) -> list[ImageTokens]:
        """See `encoder.VisionSide`. After an inner block the final norm and the pool follow as after the last one."""
        depth, patch = self.config.depth, self.config.patch_size
        if not indices or any(not -depth <= i < depth for i in indices):
            raise ValueError(f"layers {list(indices)}: give at least one index from {-depth} to {depth - 1}")
        if learned is not None:
            raise ModelError(NO_LAYER_TOKENS)
        height, width = pixels.shape[2:]
        if not height or not width or height % patch or width % patch:
            raise ValueError(f"image sides must be positive multiples of {patch}, got {height} x {width}")
        wanted = [i % depth for i in indices]
        kept: dict[int, ImageTokens] = {}
        x = self.model.embeddings(2 * pixels - 1, interpolate_pos_encoding=True)
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x, None)
            if i in wanted:
                tokens = self.model.post_layernorm(x)
                pooled = self.model.head(tokens)
                patches = tokens if readout == "tokens" else self._alone(tokens)
                kept[i] = ImageTokens(pooled, pooled, patches.unflatten(1, (height // patch, width // patch)))
        return [kept[i] for i in wanted]

    def _alone(self, tokens: Tensor) -> Tensor:
        """Each token (B, N, D) through the pool without the others: its query then gives all its weight to that one, so
        that of the attention only values and projection are left."""
        head = self.model.head
        weight, bias = (part.chunk(3)[2] for part in (head.attention.in_proj_weight, head.attention.in_proj_bias))
        x = head.attention.out_proj(F.linear(tokens, weight, bias))
        return x + head.mlp(head.layernorm(x))


class TextSide(nn.Module):
    """transformers' text tower, with learned vectors before the embedded words."""

    model: Any

    def __init__(self, model: Any, config: TextConfig, bias: float) -> None:
        super().__init__()
        self.model, self.config, self.bias = model, config, bias

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def forward(
        self, ids: Tensor, valid: Tensor, prompt: Tensor | None = None, layers: LayerTokens | None = None
    ) -> Tensor:
        """See `encoder.TextSide`. As the tower was trained, it attends to padding, too. What the vectors push beyond
        the end is cut off before the positions are added."""
        if layers is not None:
            raise ModelError(NO_LAYER_TOKENS)
        x = self.model.embeddings.token_embedding(ids)
        if prompt is not None:
            x = torch.cat([prompt.to(x.dtype).expand(len(x), -1, -1), x], dim=1)[:, : self.config.max_length]
        x = self.model.embeddings(inputs_embeds=x)
        for block in self.model.encoder.layers:
            x = block(x, None)
        return self.model.head(self.model.final_layer_norm(x)[:, -1])


class Siglip2(nn.Module):
    """Both towers of a `transformers.SiglipModel`."""

    model: Any
    model_type: ClassVar[str] = "siglip"
    readouts: ClassVar[tuple[Readout, ...]] = ("tokens", "pooled")
    has_spatial_token: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        """Raises ValueError for sizes that do not fit together."""
        super().__init__()
        temperature, bias = 1 / model.logit_scale.exp().item(), model.logit_bias.item()
        self.config = TipsConfig(*_sizes(model.config), temperature, bias)
        self.model = model.eval().requires_grad_(False)
        self._digests: dict[bytes, str] = {}

    @property
    def vision_encoder(self) -> VisionSide:
        return VisionSide(self.model.vision_model, self.config.vision)

    @property
    def text_encoder(self) -> TextSide:
        assert self.config.bias is not None
        return TextSide(self.model.text_model, self.config.text, self.config.bias)

    @property
    def device(self) -> torch.device:
        return self.model.logit_bias.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.vision_model.post_layernorm.weight.dtype

    def digest(self, tokenizer: bytes) -> str:
        """See `Encoder.digest`."""
        if tokenizer not in self._digests:
            self._digests[tokenizer] = sha256(
                json.dumps(asdict(self.config)), tokenizer, *self.model.state_dict().values()
            )
        return self._digests[tokenizer]


def _sizes(config: Any) -> tuple[VisionConfig, TextConfig]:
    """Of a `SiglipConfig`. Raises ValueError for what no SigLIP 2 is."""
    vision, text = config.vision_config, config.text_config
    if not vision.vision_use_head:
        raise ValueError("it has no attention pool, and so no global token")
    if text.projection_size != text.hidden_size:
        raise ValueError(f"its text tower is {text.hidden_size} wide and its embeddings {text.projection_size}")
    return (
        VisionConfig(
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.image_size,
            vision.patch_size,
            vision.intermediate_size / vision.hidden_size,
        ),
        TextConfig(
            text.hidden_size,
            text.num_hidden_layers,
            text.num_attention_heads,
            text.intermediate_size,
            text.vocab_size,
            text.max_position_embeddings,
        ),
    )


class Words:
    """A tokenizer of transformers: sentences are lower-cased, cut to the tower's length and padded at the end. The
    tower attends to the padding, so that every position is valid."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    @property
    def model(self) -> bytes:
        return self.tokenizer.backend_tokenizer.to_str().encode()

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    def unknown(self, text: str) -> list[str]:
        """None: the tower has seen the web."""
        return []

    def __call__(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        options = {"padding": "max_length", "truncation": True, "max_length": self.max_length, "padding_side": "right"}
        ids = self.tokenizer([s.lower() for s in sentences], return_tensors="pt", **options)["input_ids"]
        return ids, torch.ones_like(ids, dtype=torch.bool)


def read_model(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> tuple[Siglip2, Words]:
    """A folder in transformers' own format: the vision tower in `dtype`, the text tower in float32, as for TIPS.
    Raises ModelError."""
    try:
        from transformers import AutoTokenizer, SiglipConfig, SiglipModel
    except ImportError:
        raise ModelError(PACKAGE_MISSING) from None
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with explained(folder.path), _quiet():
        TipsConfig(*_sizes(SiglipConfig.from_pretrained(folder.path, **local)), 1.0)  # before anything is built
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = SiglipModel.from_pretrained(folder.path, **options, **local)
        model, found = loaded
        if missing := sorted(found["missing_keys"]):
            raise ModelError(f"{folder.path}: its weights lack {len(missing)} tensors, first {missing[0]!r}")
        model = model.to(device)
        model.vision_model.to(dtype)
        encoder = Siglip2(model)
        return encoder, Words(AutoTokenizer.from_pretrained(folder.path, **local), encoder.config.text.max_length)


def write_model(folder: Path, encoder: Siglip2, tokenizer: Words, image_size: tuple[int, int]) -> None:
    """The same folder, with `image_size` as the default."""
    with _quiet():
        encoder.model.save_pretrained(folder)
        tokenizer.tokenizer.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": 2,  # bilinear
        **{"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True},
        **{"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    text = json.dumps(preprocessor, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports and draws bars while it reads."""
    from transformers.utils import logging as reports

    level, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity(logging.CRITICAL)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()
