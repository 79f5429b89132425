"""The losses that prompt methods are trained with (Tipsomaly: section 2.5)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, h, w, C) probabilities of patches -> (B, C, H, W), bilinearly; `size` is (H, W). As two matrices: on a GPU
    the gradient of F.interpolate adds up in any order, so that the same seed would not give the same prompts."""
    maps = maps.permute(0, 3, 1, 2)
    rows, columns = (bilinear(maps.shape[i + 2], size[i]).to(maps) for i in (0, 1))
    return rows @ maps @ columns.T


def focal_loss(maps: Tensor, target: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Mean of -(1 - p)^gamma log p over pixels, p the probability of a pixel's own class, with labels smoothed.

    maps (B, C, H, W) probabilities; target (B, H, W) the class of each pixel, whole numbers from 0 on in any type.
    """
    rest = smooth / (maps.shape[1] - 1)  # what the label gives each other class, and 1 - smooth its own
    own = maps.gather(1, target.long()[:, None])[:, 0]
    p = (1 - smooth - rest) * own + rest * maps.sum(1) + smooth
    return (-((1 - p) ** gamma) * p.log()).mean()


def dice_loss(maps: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - the mean Dice coefficient of probabilities (B, H, W) and masks (B, H, W)."""
    overlap = (maps * masks).sum((1, 2))
    return 1 - ((2 * overlap + smooth) / (maps.sum((1, 2)) + masks.sum((1, 2)) + smooth)).mean()


def local_loss(maps: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Focal and Dice losses of probabilities (B, 1 + K, H, W), the normal one first, and the class of each pixel
    (B, H, W), 0 where it is normal."""
    masks = (target > 0).to(maps)
    return {
        "focal": focal_loss(maps, target),
        "dice_abnormal": dice_loss(maps[:, 1:].sum(1), masks),
        "dice_normal": dice_loss(maps[:, 0], 1 - masks),
    }


def image_loss(tokens: Tensor, prototypes: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Cross-entropy of the logits of tokens (B, D) against a pair of prototypes, (2, D) or (B, 2, D)."""
    unit = F.normalize(tokens.float(), dim=-1)[:, None]
    return F.cross_entropy((unit @ prototypes.float().mT)[:, 0] / temperature, labels)


@lru_cache(maxsize=8)
def bilinear(source: int, target: int) -> Tensor:
    """(target, source) float64 weights of torch's bilinear interpolation along one axis."""
    identity = torch.eye(source, dtype=torch.float64)[None]
    return F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T
