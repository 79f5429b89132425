"""Tokens against prototypes: equation 1 and the anomaly map (section 2.5), and the image-level strategies of table 2c
(section 3.3)."""

from collections.abc import Mapping
from functools import lru_cache
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.errors import OptionError
from tipsomaly.prompts.losses import bilinear
from tipsomaly.prompts.prototypes import probabilities

SIGMA = 4.0
"""Standard deviation in pixels, at the model's input size, of the Gaussian that smooths a map."""

STRATEGIES: Mapping[str, str] = {
    "S1": "object",
    "S2": "spatial",
    "S3": "max(S1, S2)",
    "S4": "mean(S1, S2)",
    "S5": "S2 + local",
}
"""The image scores of table 2c, in words; `image_scores` computes them. S5 is the paper's choice."""


ONE_TOKEN = ("S1", "S5")
"""Those that have a meaning for a backbone with one global token, which then stands for the spatial one as well."""

IMAGE_SCORE: Mapping[str, float] = {"spatial": 1.0, "local": 1.0}
"""S5 as weights of its parts; other methods have others."""

Strategy = str | Mapping[str, float]
"""An image score: a name of STRATEGIES, or weights of "object", "spatial" and "local", which are p_a(g_o), p_a(g_s) and
the largest patch probability."""


def anomaly_probability(tokens: Tensor, prototypes: Tensor, temperature: float, bias: float | None = None) -> Tensor:
    """p_a of equation 1: the softmax over cosine similarities / temperature, its abnormal part.

    tokens (B, ..., D), of any length; prototypes (1 + K, D), or (B, 1 + K, D) for each picture its own, unit vectors,
    the normal one first -> (B, ...) float32 in [0, 1], the sum over the K abnormal ones. `bias`: see `probabilities`.

    >>> tokens, prototypes = torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.0, 1.0]]), torch.eye(2)
    >>> anomaly_probability(tokens, prototypes, temperature=1.0)  # the last is 1 / (1 + 1 / e)
    tensor([0.2689, 0.5000, 0.7311])
    """
    return probabilities(tokens, prototypes, temperature, bias)[..., 1:].sum(-1).clamp(max=1)


def local_evidence(patches: np.ndarray, top: float | None = None) -> float:
    """The local part of an image score, of patch probabilities of any shape: the largest (the paper's), or the mean of
    the largest `top` of them, rounded down and at least one."""
    count = top_count(top, patches.size)
    return float(np.partition(patches, -count, axis=None)[-count:].mean(dtype=np.float64))


def top_count(top: float | None, patches: int) -> int:
    """How many of so many patches make the local part of an image score."""
    return 1 if top is None else max(1, int(top * patches + 1e-9))


def image_scores(object_score: float, spatial_score: float, local_score: float) -> dict[str, float]:
    """The score of every strategy of table 2c (section 3.3), by name, from three probabilities in [0, 1].

    With G_f the fixed prototypes and S_a the map of patch probabilities, before it is upsampled and smoothed:

    - S1 = p_a(g_o, G_f), `object_score`
    - S2 = p_a(g_s, G_f), `spatial_score`
    - S3 = max(S1, S2)
    - S4 = (S1 + S2) / 2
    - S5 = S2 + max(S_a), `local_score` being max(S_a): in [0, 2], all others in [0, 1]

    In the paper S2 is better than S5 on MVTec AD and worse on VisA and on the average of its data sets: see
    `studies/paper.json`.

    >>> image_scores(0.25, 0.5, 0.75)
    {'S1': 0.25, 'S2': 0.5, 'S3': 0.5, 'S4': 0.375, 'S5': 1.25}
    """
    return {
        "S1": object_score,
        "S2": spatial_score,
        "S3": max(object_score, spatial_score),
        "S4": (object_score + spatial_score) / 2,
        "S5": spatial_score + local_score,
    }


def image_score(strategy: Strategy, object_score: float, spatial_score: float, local_score: float) -> float:
    """The image score of one strategy. Raises OptionError for an unknown one."""
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise OptionError(f"unknown strategy {strategy!r}: choose {', '.join(STRATEGIES)}")
        return image_scores(object_score, spatial_score, local_score)[strategy]
    parts = {"object": object_score, "spatial": spatial_score, "local": local_score}
    return sum(weight * parts[part] for part, weight in strategy.items())


def named(strategy: Strategy) -> Strategy:
    """The name of an image score, if it has one."""
    names: dict[str, Mapping[str, float]] = {"S1": {"object": 1.0}, "S2": {"spatial": 1.0}, "S5": IMAGE_SCORE}
    return next((name for name, weights in names.items() if weights == strategy), strategy)


def described(strategy: Strategy) -> str:
    """An image score in words."""
    strategy = named(strategy)
    return strategy if isinstance(strategy, str) else " + ".join(f"{w:.2g} {part}" for part, w in strategy.items())


@overload
def anomaly_map(
    patch_map: np.ndarray, input_size: tuple[int, int], size: tuple[int, int] | None = ..., sigma: float = ...
) -> np.ndarray: ...
@overload
def anomaly_map(
    patch_map: Tensor, input_size: tuple[int, int], size: tuple[int, int] | None = ..., sigma: float = ...
) -> Tensor: ...
def anomaly_map(
    patch_map: np.ndarray | Tensor,
    input_size: tuple[int, int],
    size: tuple[int, int] | None = None,
    sigma: float = SIGMA,
) -> np.ndarray | Tensor:
    """Patch probabilities (..., h, w) -> anomaly maps (..., H, W) float32 in [0, 1]: an array for an array, a tensor on
    the same device for a tensor.

    As in the paper the map is upsampled bilinearly to the model's `input_size` and smoothed there by a Gaussian of
    `sigma` pixels; then it is resized bilinearly to `size`. Each step is linear and separable, so all of them together
    are one matrix for the rows and one for the columns.

    >>> anomaly_map(np.float32([[0, 1]]), input_size=(14, 28), size=(1, 4), sigma=0)
    array([[0.  , 0.25, 0.75, 1.  ]], dtype=float32)
    """
    if isinstance(patch_map, np.ndarray):
        return anomaly_map(torch.from_numpy(patch_map), input_size, size, sigma).numpy()
    axes = [(patch_map.shape[i], input_size[i], (size or input_size)[i], sigma) for i in (-2, -1)]
    rows, columns = (resampling(*axis, patch_map.device) for axis in axes)
    return (rows @ patch_map.float() @ columns.T).clamp_(0.0, 1.0)


@lru_cache(maxsize=64)
def resampling(patches: int, input_length: int, length: int, sigma: float, device: torch.device) -> Tensor:
    """(length, patches) float32: upsample to `input_length`, smooth with scipy's filter, resize to `length`."""
    from scipy.ndimage import gaussian_filter1d

    matrix = bilinear(patches, input_length)
    if sigma > 0:
        matrix = torch.from_numpy(gaussian_filter1d(matrix.numpy(), sigma, axis=0))
    if length != input_length:
        matrix = F.interpolate(matrix.T[None], size=length, mode="linear", align_corners=False)[0].T
    return matrix.float().contiguous().to(device)
