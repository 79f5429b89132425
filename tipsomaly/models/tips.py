"""The two TIPS towers (Maninis et al., ICLR 2025) in plain torch, and their configuration.

    image -> VisionTower -> object token g_o, spatial token g_s, patch tokens
    text  -> TextTower   -> one embedding per sentence

Parameter names are those of the released npz files, so a checkpoint is `vision_encoder.<name>` and
`text_encoder.<name>`: the layout that `transformers.Tipsv2Model` reads too.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.files import sha256
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.encoder import ImageTokens, LayerTokens, Readout


class VisionTower(nn.Module):
    """DINOv2-style ViT with one register token, which TIPS trains to be the spatial token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # pre-training only; kept so that checkpoints are whole
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, config.patch_size, config.patch_size)})
        self.blocks = nn.ModuleList(_VisionBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, pixels: Tensor) -> ImageTokens:
        """Encode (B, 3, H, W) pixels in [0, 1]; H and W are multiples of the patch size."""
        return self.layers(pixels, [self.config.depth - 1])[0]

    def layers(
        self,
        pixels: Tensor,
        indices: Sequence[int],
        learned: LayerTokens | None = None,
        readout: Readout = "tokens",
    ) -> list[ImageTokens]:
        """The tokens after each of the blocks `indices` (0-based, negative from the end), final norm applied, in the
        order asked for. One pass through the tower serves them all (the paper's table 7 compares layers). `learned`
        tokens stand between the global tokens and the patches. What the patches are read from: see `Readout`."""
        depth = self.config.depth
        bad = [i for i in indices if not -depth <= i < depth]
        if bad or not indices:
            raise ValueError(f"layers {list(indices)}: give at least one index from {-depth} to {depth - 1}")
        wanted = [i % depth for i in indices]
        x, (h, w) = self._embed(pixels)
        kept: dict[int, ImageTokens] = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            given = learned.before(i, x, at=2) if learned else x
            x = block(given)
            if i in wanted:
                tokens = self.norm(x)
                assert isinstance(block, _VisionBlock)
                patches = tokens if readout == "tokens" else self.norm(block.values(given))
                kept[i] = ImageTokens(tokens[:, 0], tokens[:, 1], patches[:, -h * w :].unflatten(1, (h, w)))
        return [kept[i] for i in wanted]

    def _embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"expected pixels of shape (B, 3, H, W), got {tuple(pixels.shape)}")
        patch = self.config.patch_size
        height, width = pixels.shape[2:]
        if not height or not width or height % patch or width % patch:
            raise ValueError(f"image sides must be positive multiples of {patch}, got {height} x {width}")
        h, w = height // patch, width // patch
        proj = self.patch_embed["proj"]
        assert isinstance(proj, nn.Conv2d)
        # The convolution as the matrix product that it is: two to three times as fast, and its output lies as tokens.
        patches = pixels.to(self.cls_token.dtype).unflatten(2, (h, patch)).unflatten(4, (w, patch))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = F.linear(patches, proj.weight.flatten(1), proj.bias) + self.patch_positions(h, w)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        register = self.register_tokens.expand(x.shape[0], -1, -1)  # no positional embedding
        return torch.cat([cls, register, x], dim=1), (h, w)

    def patch_positions(self, h: int, w: int) -> Tensor:
        """(1, h * w, D) positional embedding, resampled from the trained grid in float32."""
        grid, positions = self.config.grid, self.pos_embed[:, 1:]
        if (h, w) == (grid, grid):
            return positions
        square = positions.float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        resampled = F.interpolate(square, size=(h, w), mode="bilinear", antialias=True)
        return resampled.flatten(2).transpose(1, 2).to(positions.dtype)


class _VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _VisionAttention(dim, config.heads)
        self.ls1 = _LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = (_SwiGLU if config.swiglu else _VisionMLP)(dim, config.mlp_dim)
        self.ls2 = _LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ls1(x, self.attn(self.norm1(x)))
        return self.ls2(x, self.mlp(self.norm2(x)))

    def values(self, x: Tensor) -> Tensor:
        """What the block makes of tokens that attend to themselves alone."""
        x = self.ls1(x, self.attn.proj(self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)[2]))
        return self.ls2(x, self.mlp(self.norm2(x)))


class _VisionAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_attend(self.qkv(x), self.heads))


class _VisionMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + gamma * branch, in one pass over memory."""
        return torch.addcmul(x, branch, self.gamma)


class TextTower(nn.Module):
    """Pre-norm transformer over token ids; a sentence's embedding is the mean over its valid positions."""

    bias: ClassVar[float | None] = None

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        # Embedding's own initialisation, on the meta device, would import torch's compiler: two seconds of start-up.
        self.token_embedding = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, config.dim), freeze=False)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(_TextBlock(config) for _ in range(config.depth))})
        self.ln_final = nn.LayerNorm(config.dim, eps=1e-5)

    @property
    def device(self) -> torch.device:
        return self.token_embedding.weight.device

    def forward(
        self, ids: Tensor, valid: Tensor, prompt: Tensor | None = None, layers: LayerTokens | None = None
    ) -> Tensor:
        """Embed (n, length) token ids into (n, D); `valid` (n, length) is true where an id is not padding.

        `prompt` (E, D), or (n, E, D) for each sentence its own, holds learned vectors that go in front of the scaled
        token embeddings, before the positions are added; the sequence is then cut back to `max_length`. Tokens of
        `layers` that are inserted do not count in that, have no positions and are no part of the mean.
        """
        x = self.token_embedding(ids) * math.sqrt(self.config.dim)
        if prompt is not None:
            x = torch.cat([prompt.to(x.dtype).expand(len(x), -1, -1), x], dim=1)[:, : self.config.max_length]
            valid = F.pad(valid, (prompt.shape[-2], 0), value=True)[:, : self.config.max_length]
        x = x + sinusoidal_positions(x.shape[1], self.config.dim).to(x)
        added = layers.added if layers else 0
        mask = F.pad(valid, (added, 0), value=True)[:, None, None, :]
        blocks = self.transformer["resblocks"]
        assert isinstance(blocks, nn.ModuleList)
        for i, block in enumerate(blocks):
            x = block(layers.before(i, x) if layers else x, mask)
        weight = valid.unsqueeze(-1).to(x.dtype)
        return (self.ln_final(x[:, added:]) * weight).sum(1) / weight.sum(1).clamp(min=1)


class _TextBlock(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.dim, eps=1e-5)
        self.attn = _TextAttention(config.dim, config.heads)
        self.ln_2 = nn.LayerNorm(config.dim, eps=1e-5)
        hidden = config.mlp_dim
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(config.dim, hidden), "c_proj": nn.Linear(hidden, config.dim)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp["c_proj"](F.relu(self.mlp["c_fc"](self.ln_2(x))))


class _TextAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out_proj(_attend(F.linear(x, self.in_proj_weight, self.in_proj_bias), self.heads, mask))


def _attend(qkv: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention over (B, N, 3 D) projected queries, keys and values -> (B, N, D)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """(length, dim) positions: dim / 2 sines, then dim / 2 cosines, of wavelengths from 2 pi to 20,000 pi."""
    rates = torch.exp(torch.arange(dim // 2) * (-math.log(10000.0) / max(dim // 2 - 1, 1)))
    angles = torch.arange(length).float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Tips(nn.Module):
    """Both towers under the key names of a published `model.safetensors`."""

    model_type: ClassVar[str] = "tipsv2"
    readouts: ClassVar[tuple[Readout, ...]] = ("tokens", "values")
    has_spatial_token: ClassVar[bool] = True

    def __init__(self, config: TipsConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = VisionTower(config.vision)
        self.text_encoder = TextTower(config.text)
        self._digests: dict[bytes, str] = {}

    @property
    def device(self) -> torch.device:
        return self.vision_encoder.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_encoder.cls_token.dtype

    def digest(self, tokenizer: bytes) -> str:
        """SHA-256 of the sizes, of all weights and of the tokenizer that belongs to them: computed once and kept, since
        the towers are frozen."""
        if tokenizer not in self._digests:
            self._digests[tokenizer] = sha256(
                json.dumps(self.config.to_dict(), sort_keys=True), tokenizer, *self.state_dict().values()
            )
        return self._digests[tokenizer]

    @classmethod
    def from_state_dict(cls, config: TipsConfig, state: Mapping[str, Tensor]) -> "Tips":
        """Build the towers around the tensors of `state`, without copying or initialising anything.

        Raises ValueError naming the first missing, unexpected or wrongly shaped key.
        """
        with torch.device("meta"):
            model = cls(config)
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if missing := sorted(expected.keys() - state.keys()):
            raise ValueError(f"checkpoint lacks {len(missing)} of {len(expected)} tensors, first {missing[0]!r}")
        if unexpected := sorted(state.keys() - expected.keys()):
            raise ValueError(f"checkpoint has {len(unexpected)} unexpected tensors, first {unexpected[0]!r}")
        for name, shape in expected.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}, the configuration wants {shape}")
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)


_RENAMED = [
    (r"^vision_model\.(embeddings\.)?", "vision_encoder."),
    (r"^text_model\.(embeddings\.)?", "text_encoder."),
    (r"^(vision_encoder\.)patch_embeddings\.projection\.", r"\1patch_embed.proj."),
    (r"^(vision_encoder\.)position_embeddings$", r"\1pos_embed"),
    (r"^(vision_encoder\.)encoder\.layer\.", r"\1blocks."),
    (r"^(vision_encoder\.)layernorm\.", r"\1norm."),
    (r"^(vision_encoder\..*\.)attention\.o_proj\.", r"\1attn.proj."),
    (r"^(vision_encoder\..*\.)attention\.[qkv]_proj\.", r"\1attn.qkv."),
    (r"^(vision_encoder\..*\.)layer_scale([12])\.lambda1$", r"\1ls\2.gamma"),
    (r"^(vision_encoder\..*\.mlp\.)down_proj\.", r"\1w3."),
    (r"^(vision_encoder\..*\.mlp\.)(gate|up)_proj\.", r"\1w12."),
    (r"^(vision_encoder\..*\.mlp\.)c_fc\.", r"\1fc1."),
    (r"^(vision_encoder\..*\.mlp\.)c_proj\.", r"\1fc2."),
    (r"^(text_encoder\.)encoder\.layers\.", r"\1transformer.resblocks."),
    (r"^(text_encoder\.)final_layer_norm\.", r"\1ln_final."),
    (r"^(text_encoder\..*\.)layer_norm([12])\.", r"\1ln_\2."),
    (r"^(text_encoder\..*\.)self_attn\.out_proj\.", r"\1attn.out_proj."),
    (r"^(text_encoder\..*\.)self_attn\.[qkv]_proj\.", r"\1attn.in_proj_"),
    (r"^(text_encoder\..*\.mlp\.)fc1\.", r"\1c_fc."),
    (r"^(text_encoder\..*\.mlp\.)fc2\.", r"\1c_proj."),
]
_PARTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the released names, which it may already have, where `transformers.Tipsv2Model` gave it its own:
    there queries, keys and values are matrices of their own, and so are the two halves of SwiGLU's first."""
    joined: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        part = next((i for i, p in enumerate(_PARTS) if f".{p}." in name), 0)
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        joined.setdefault(name, {})[part] = value
    return {
        name: torch.cat([parts[i] for i in sorted(parts)]) if len(parts) > 1 else next(iter(parts.values()))
        for name, parts in joined.items()
    }
