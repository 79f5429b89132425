"""The model that becomes nano, and how its weights start."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.tips import Tips
from tipsomaly.models.tokenizer import Tokenizer

IMAGE_SIZE = 224


class Student(Tips):
    """The towers, and what is trained beside them."""

    heads: nn.ModuleList
    """From its tokens to a teacher's, if there is one."""

    def __init__(self, config: TipsConfig) -> None:
        super().__init__(config)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self.free = nn.Parameter(torch.empty(2, config.text.dim))
        """Normal, abnormal: what patch tokens are trained against; not kept."""


def build(tokenizer: Tokenizer, dim: int, depth: int = 6) -> Student:
    vision = VisionConfig(dim=dim, depth=depth, heads=dim // 64, image_size=IMAGE_SIZE)
    text = TextConfig(dim=dim, depth=2, heads=dim // 64, mlp_dim=4 * dim, vocab_size=tokenizer.vocab_size)
    model = Student(TipsConfig(vision, text, temperature=0.05))
    initialise(model)
    return model


class _Attention(nn.Module):
    """A block's attention as two matrix products, the heads' weights in memory: in bfloat16 on a CPU, at 66 to 258
    tokens, more than twice as fast to train as torch's own, and never slower."""

    def __init__(self, heads: int, qkv: nn.Linear, proj: nn.Linear) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, qkv, proj

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def multiply_in_bfloat16(model: Student) -> None:
    """Make a vision tower ready for torch.autocast on a CPU."""
    blocks: Any = model.vision_encoder.blocks  # whose classes are private
    for block in blocks:
        block.attn = _Attention(block.attn.heads, block.attn.qkv, block.attn.proj)


def count(state: Iterable[str], key: str) -> int:
    """How many blocks there are whose weights' names begin with `key` and their number."""
    return 1 + max(int(name.split(key)[1].split(".")[0]) for name in state if key in name)


def deepen(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights of a vision tower of `depth` blocks that gives the tokens that the one of `state` gives. Copies of
    its last blocks, each behind its original, add nothing yet: their last matrices are zero (after Net2Net, Chen et
    al., ICLR 2016)."""
    key = "vision_encoder.blocks."
    have = count(state, key)
    if not have <= depth <= 2 * have:
        raise ValueError(f"a tower of {have} blocks grows to at most {2 * have}, not to {depth}")
    grown = {name: value for name, value in state.items() if not name.startswith(key)}
    order = sorted([*range(have), *range(2 * have - depth, have)])
    for i, of in enumerate(order):
        copied = of in order[:i]
        for name, value in state.items():
            if name.startswith(f"{key}{of}."):
                part = name.removeprefix(f"{key}{of}.")
                silent = copied and part.startswith(("attn.proj", "mlp.fc2"))
                grown[f"{key}{i}.{part}"] = torch.zeros_like(value) if silent else value
    return grown


def initialise(model: Student) -> None:
    """Mimetic initialisation of attention (Trockman and Kolter, 2023): queries and keys that start near the identity,
    values and projections near its negative; positions that start as sinusoids."""
    dim = model.config.vision.dim
    for name, p in model.named_parameters():
        if p.ndim == 2 and min(p.shape) > 1 and "pos" not in name:
            nn.init.trunc_normal_(p, std=0.02 if "embedding" in name else p.shape[1] ** -0.5)
    nn.init.normal_(model.text_encoder.token_embedding.weight, std=dim**-0.5)
    nn.init.normal_(model.free)
    nn.init.normal_(model.vision_encoder.cls_token, std=0.02)
    nn.init.normal_(model.vision_encoder.register_tokens, std=0.02)
    grid = model.vision_encoder.config.grid
    rates = torch.exp(torch.linspace(0, -math.log(100), dim // 4)) * math.pi / 2
    angle = torch.arange(grid).float()[:, None] * rates
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    model.vision_encoder.pos_embed.data[0, 1:] = 0.3 * torch.cat([rows, columns], -1).reshape(grid * grid, dim)
    eye = torch.eye(dim)
    seeing: Any = model.vision_encoder.blocks  # whose classes are private
    reading: Any = model.text_encoder.transformer["resblocks"]
    blocks = [(b.attn.qkv.weight, b.attn.proj.weight, b.attn.heads) for b in seeing]
    blocks += [(b.attn.in_proj_weight, b.attn.out_proj.weight, b.attn.heads) for b in reading]
    for qkv, projection, heads in blocks:
        width = dim // heads
        for h in range(heads):
            u, s, v = torch.linalg.svd(0.7 * torch.randn(dim, dim) / dim**0.5 + 0.7 * eye)
            scale = s[:width].sqrt()[:, None]
            qkv.data[h * width : (h + 1) * width] = u[:, :width].T * scale
            qkv.data[dim + h * width : dim + (h + 1) * width] = v[:width] * scale
        u, s, v = torch.linalg.svd(0.4 * torch.randn(dim, dim) / dim**0.5 - 0.4 * eye)
        qkv.data[2 * dim :] = s.sqrt()[:, None] * v
        projection.data[:] = u * s.sqrt()


def whiten(model: Student, images: Tensor) -> None:
    """Start the patch embedding at the whitened principal components of drawn patches, so that fine texture counts as
    much as brightness from the first step."""
    projection = model.vision_encoder.patch_embed["proj"]
    assert isinstance(projection, nn.Conv2d) and projection.bias is not None
    patches = F.unfold(images, 14, stride=14).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    dim = len(projection.bias)
    filters = (vectors[:, -dim:] / (values[-dim:] + 1e-4).sqrt()).T
    projection.weight.data = filters.reshape(projection.weight.shape).contiguous()
    projection.bias.data = -filters @ mean
