"""What a few normal pictures say, each left out in turn: the memory, how far normal patches are from it, thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tipsomaly.detection import scoring
from tipsomaly.detection.calibration import PixelCounts
from tipsomaly.detection.combination import USES, Use, combine, logit, scales_of
from tipsomaly.detection.memory import MEMORIES, Memory, coreset, nearest
from tipsomaly.detection.references import LIMIT, NUMBERS, ReferenceOptions, References
from tipsomaly.errors import OptionError

ALONE = 0.15
"""The memory's weight, the prompts' being 1, if there is one picture only, which does not show how others differ."""
LEAST, MOST = 0.3, 2.0
"""The memory's weight with more pictures."""
EACH = 0.5
"""What each picture but the first adds to it at most: two say little of how others differ, and the prompts lead."""
TURNS = 8
"""Quarter turns and flips of a picture, itself among them."""
COMPARED = 16
"""Pictures that are compared with each other at most for their likeness, as that is quadratic."""


class Normal(NamedTuple):
    """What the model says of a normal picture."""

    tokens: Sequence[Tensor]
    """Of each view, the whole picture and then its tiles: (h, w, D) float32 unit vectors."""
    images: Tensor
    """(2,) float32: p_a of the object and the spatial token of the whole, by the prompts."""
    patches: Sequence[Tensor]
    """Of each view (h, w) float32: p_a by the prompts."""
    turned: Sequence[tuple[int, Tensor]] = ()
    """Turned views, of the whole or of tiles: the turn, and (h, w, D) tokens; they are remembered, but not scored."""


def turn(values: Tensor, number: int) -> Tensor:
    """One of the 8 quarter turns and flips of (..., h, w)."""
    flipped = values.flip(-1) if number >= 4 else values
    return flipped.rot90(number % 4, (-2, -1))


def fit(
    normals: Sequence[Normal],
    options: ReferenceOptions | None = None,
    *,
    class_name: str = "object",
    settings: Mapping[str, Any] | None = None,
    sigma: float = scoring.SIGMA,
    patch_size: int = 14,
    image_score: scoring.Strategy = scoring.IMAGE_SCORE,
    top: float | None = None,
) -> References:
    """Of what the model says of at least one normal picture. `sigma` and `patch_size` are those of their maps, which
    are made at the size that the model saw, those of tiles one by one; `image_score` and `top` are
    how they are scored. The tokens' device does the work."""
    options = options or ReferenceOptions()
    options = replace(options, layers=options.blocks)
    if not normals:
        raise OptionError("references are normal pictures: give at least one")
    make = MEMORIES[options.kind]
    tokens, owners = _remembered(normals, options.limit)
    distances = _left_out(normals, tokens, owners, make)
    logits = [torch.cat([logit(patches).flatten() for patches in normal.patches]) for normal in normals]
    flat = [torch.cat([d.flatten() for d in picture]) for picture in distances]
    images = torch.stack([normal.images for normal in normals]).cpu()
    likeness = how_unlike(normals)
    most = min(EACH * (len(normals) - 1), MOST)
    weight = ALONE if likeness is None else min(max((1.2 - likeness) / 0.3, LEAST), most)
    scales = scales_of(images, logits, flat, weight)
    scores: dict[Use, list[float]] = {use: [] for use in USES}
    pixels = {use: PixelCounts() for use in USES}
    for i, normal in enumerate(normals):
        rest = [j for j in range(len(normals)) if j != i] or [i]
        without = scales_of(images[rest], [logits[j] for j in rest], [flat[j] for j in rest], weight)
        for use in USES:
            evidence = [
                combine(normal.images[None].cpu(), p[None].cpu(), d[None], without, weight, use)
                for p, d in zip(normal.patches, distances[i], strict=True)
            ]
            scored = evidence[1:] or evidence
            local = scoring.local_evidence(torch.cat([e.patches.flatten() for e in scored]).numpy(), top)
            object_score, global_score = evidence[0].images[0].tolist()
            scores[use].append(scoring.image_score(image_score, object_score, global_score, local))
            for e in scored:
                size = e.patches.shape[1] * patch_size, e.patches.shape[2] * patch_size
                pixels[use].add(scoring.anomaly_map(e.patches[0].numpy(), size, sigma=sigma))
    return References(
        memory=make.fit(tokens),
        scales=scales,
        scores={use: torch.tensor(sorted(scores[use]), dtype=torch.float32) for use in USES},
        pixels={use: (pixels[use].threshold(options.target_fpr), pixels[use].threshold(0.05)) for use in USES},
        options=options,
        class_name=class_name,
        settings=dict(settings or {}),
        weight=weight,
        likeness=likeness,
    )


def _quadrants(height: int, width: int) -> Tensor:
    """(h, w) int64: 0 to 3, in which quarter of the picture a patch is."""
    rows, columns = (torch.arange(length) * 2 // length for length in (height, width))
    return rows[:, None] * 2 + columns


def _remembered(normals: Sequence[Normal], limit: int | None) -> tuple[Tensor, Tensor]:
    """All tokens (M, D), or a coreset of `limit`, and whose each is: a picture's, of a single picture a quarter's."""
    limit = limit or max(1, min(LIMIT, NUMBERS // normals[0].tokens[0].shape[-1]))
    tokens, owners = [], []
    for i, normal in enumerate(normals):
        for number, view in (*((0, view) for view in normal.tokens), *normal.turned):
            tokens.append(view.flatten(0, 1))
            if len(normals) > 1:
                owners.append(torch.full((len(tokens[-1]),), i))
            else:
                height, width = view.shape[:2] if number % 2 == 0 else (view.shape[1], view.shape[0])
                owners.append(turn(_quadrants(height, width), number).flatten())
        if sum(map(len, tokens)) > 4 * limit:
            tokens, owners = ([part] for part in _reduced(torch.cat(tokens), torch.cat(owners), 2 * limit))
    return _reduced(torch.cat(tokens), torch.cat(owners), limit)


def _reduced(tokens: Tensor, owners: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    kept = coreset(tokens, limit)
    return tokens[kept].contiguous(), owners.to(kept.device)[kept]


def _left_out(normals: Sequence[Normal], tokens: Tensor, owners: Tensor, make: type[Memory]) -> list[list[Tensor]]:
    """By picture and view (h, w) on the CPU: the patches' distances to a memory without the picture or, of a single
    picture, without the quarter that a patch is in. A memory that nothing is left of is the whole one."""

    def without(owner: int) -> Memory:
        rest = tokens[owners != owner]
        return make.fit(rest if len(rest) else tokens)

    if len(normals) > 1:
        return [[without(i).distances(view).cpu() for view in normal.tokens] for i, normal in enumerate(normals)]
    memories = [without(quarter) for quarter in range(4)]
    distances = []
    for view in normals[0].tokens:
        quarters = _quadrants(*view.shape[:2]).to(view.device)
        to_each = torch.stack([memory.distances(view) for memory in memories])
        distances.append(to_each.gather(0, quarters[None])[0].cpu())
    return [distances]


def how_unlike(normals: Sequence[Normal]) -> float | None:
    """Mean distance of a patch to the nearest of the other pictures, divided by that to the nearest outside its own
    quarter of its own picture; None for one picture."""
    if len(normals) < 2:
        return None
    step = -(-len(normals) // COMPARED)
    whole = [normal.tokens[0] for normal in normals[::step]]
    whole = whole if len(whole) > 1 else [normal.tokens[0] for normal in normals[:2]]
    others = own = 0.0
    for i, view in enumerate(whole):
        rest = torch.cat([other.flatten(0, 1) for j, other in enumerate(whole) if j != i])
        others += float(nearest(view, rest).mean())
        flat, quarters = view.flatten(0, 1), _quadrants(*view.shape[:2]).flatten().to(view.device)
        similar = (flat @ flat.T).masked_fill_(quarters[:, None] == quarters, -1)
        own += float((1 - similar.amax(dim=1)).mean())
    return others / max(own, 1e-6)
