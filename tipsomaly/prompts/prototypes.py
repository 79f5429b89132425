"""Sentences of a normal and an abnormal state -> two unit vectors; equation 1 for any number of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.models.encoder import LayerTokens, TextSide, Words


def probabilities(tokens: Tensor, prototypes: Tensor, temperature: float, bias: float | None = None) -> Tensor:
    """Equation 1 for any number of prototypes: the softmax over cosine similarities / temperature. With a `bias`, for a
    backbone that was trained so, the sigmoid of each similarity / temperature + bias: they need not add up to 1.

    tokens (B, ..., D), of any length; prototypes (1 + K, D), or (B, 1 + K, D) for each picture its own, unit vectors
    -> (B, ..., 1 + K) float32.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    if prototypes.ndim == 2:
        similarity = unit @ prototypes.float().T
    else:
        flat = unit.reshape(len(unit), -1, unit.shape[-1])
        similarity = (flat @ prototypes.float().mT).reshape(*unit.shape[:-1], -1)
    logits = similarity / temperature
    return logits.softmax(dim=-1) if bias is None else (logits + bias).sigmoid()


def pair(prototypes: Tensor) -> Tensor:
    """(..., 1 + K, D) -> (..., 2, D): the normal prototype and the mean of the others, made a unit vector again."""
    if prototypes.shape[-2] == 2:
        return prototypes
    abnormal = F.normalize(prototypes[..., 1:, :].mean(-2), dim=-1)
    return torch.stack([prototypes[..., 0, :], abnormal], dim=-2)


def prototypes(
    tower: TextSide,
    tokenizer: Words,
    sentences: tuple[Sequence[str], Sequence[str]],
    learned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(2, D) float32 prototypes, normal then abnormal: the mean of the unit sentence embeddings of a state, made a
    unit vector again. `learned` holds the vectors to put before the normal and the abnormal sentences.

    Gradients flow to `learned`, so that training and inference share this function.
    """
    states = zip(sentences, learned or (None, None), strict=True)
    embeddings = (embed(tower, tokenizer, texts, vectors) for texts, vectors in states)
    return torch.stack([F.normalize(e.mean(0), dim=-1) for e in embeddings])


def embed(
    tower: TextSide,
    tokenizer: Words,
    texts: Sequence[str],
    learned: Tensor | None = None,
    layers: LayerTokens | None = None,
) -> Tensor:
    """(n, D) float32 unit embeddings of sentences, each with the `learned` vectors (E, D) before it, or with its own of
    (n, E, D), if there are some; `layers` holds learned tokens of the tower's blocks."""
    device = tower.device
    ids, valid = tokenizer(texts)
    length = max(int(valid.sum(1).max()), 1)  # padding is masked everywhere: cutting it off changes only the time
    prompt = None if learned is None else learned.to(device)
    return F.normalize(tower(ids[:, :length].to(device), valid[:, :length].to(device), prompt, layers).float(), dim=-1)
