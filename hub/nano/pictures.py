"""Batches of drawn pictures with masks: surface -> defect -> photograph."""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas
from .defects import DEFECTS, Defect, apply
from .photo import photograph
from .surfaces import HELD_OUT, SURFACES, Surface

TRAINING_FAMILIES = [name for name in SURFACES if name not in HELD_OUT]


@dataclass
class Batch:
    """`images` (B, 3, S, S) in [0, 1]; `masks` (B, 1, S, S) in [0, 1]; `family` one name a group of B / groups
    pictures; `kind` (B,) index into DEFECTS, -1 where the picture is normal."""

    images: Tensor
    masks: Tensor
    family: list[str]
    kind: Tensor


def draw_batch(seed: int, n: int, size: int, families: list[str], groups: int = 8, device: str = "cpu") -> Batch:
    """`n` drawn pictures of `groups` random families. The same seed gives the same pictures."""
    rng = random.Random(seed)
    generator = torch.Generator(device).manual_seed(rng.getrandbits(62))
    chosen = rng.sample(families, groups) if groups <= len(families) else rng.choices(families, k=groups)
    return compose(rng, generator, [SURFACES[name] for name in chosen], n, size, list(DEFECTS.values()))


def compose(
    rng: random.Random, generator: torch.Generator, surfaces: list[Surface], n: int, size: int, defects: list[Defect]
) -> Batch:
    """`n` pictures, one group for each of `surfaces`; half of them are the same surfaces without the defect,
    photographed anew, so that nothing but the defect tells the halves apart."""
    images, masks, kinds = [], [], []
    half = n // len(surfaces) // 2
    for surface in surfaces:
        canvas = Canvas(half, size, generator)
        image, foreground = surface.draw(canvas)
        fitting = [d for d in defects if d.domain in (surface.domain, "any")]
        first = max(half // 2, 1)
        defective, mask, kind = [], [], []
        for part in (slice(0, first), slice(first, half)):
            if not len(image[part]):
                continue
            drawn, drawn_mask, which = _add_defects(rng, generator, image[part], foreground[part], fitting)
            defective.append(drawn)
            mask.append(drawn_mask)
            kind.append(which)
        images += [image, *defective]
        masks += [torch.zeros_like(foreground), *mask]
        kinds += [torch.full((half,), -1, device=generator.device), *kind]
    canvas = Canvas(2 * half * len(surfaces), size, generator)
    taken, taken_masks = photograph(canvas, torch.cat(images), torch.cat(masks))
    taken_kinds = torch.where(taken_masks.flatten(1).amax(1) > 0.5, torch.cat(kinds), -1)
    return Batch(taken, taken_masks, [surface.name for surface in surfaces], taken_kinds)


def _add_defects(
    rng: random.Random, generator: torch.Generator, image: Tensor, foreground: Tensor, fitting: list[Defect]
) -> tuple[Tensor, Tensor, Tensor]:
    """One kind of defect, sometimes a second one on top."""
    chosen = rng.sample(fitting, 2 if rng.random() < 0.15 else 1)
    mask = torch.zeros_like(foreground)
    for defect in chosen:
        image, more = apply(defect, Canvas(len(image), image.shape[-1], generator), image, foreground)
        mask = torch.maximum(mask, more)
    return image, mask, torch.full((len(image),), list(DEFECTS).index(chosen[0].name), device=image.device)


def patch_targets(masks: Tensor, patch: int = 14) -> tuple[Tensor, Tensor]:
    """Per patch (B, h, w): is it defective, and does it count. A patch is defective when at least 6 % of it is (a
    hairline crosses about that much); between 1 and 6 % it is nobody's fault and left out."""
    coverage = F.avg_pool2d(masks, patch)[:, 0]
    return (coverage >= 0.06).float(), ((coverage >= 0.06) | (coverage <= 0.01)).float()
