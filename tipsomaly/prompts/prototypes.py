"""Sentences of a normal and an abnormal state -> two unit vectors (sections 2.3 and 2.4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.models.tips import TextTower
from tipsomaly.models.tokenizer import Tokenizer


def prototypes(
    tower: TextTower,
    tokenizer: Tokenizer,
    sentences: tuple[Sequence[str], Sequence[str]],
    learned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(2, D) float32 prototypes, normal then abnormal: the mean of the unit sentence embeddings of a state, made a
    unit vector again. `learned` holds the vectors to put before the normal and the abnormal sentences.

    Gradients flow to `learned`, so that training and inference share this function.
    """
    learned = learned or (None, None)
    embeddings = (embed(tower, tokenizer, *state) for state in zip(sentences, learned, strict=True))
    return torch.stack([F.normalize(e.mean(0), dim=-1) for e in embeddings])


def embed(tower: TextTower, tokenizer: Tokenizer, texts: Sequence[str], learned: Tensor | None = None) -> Tensor:
    """(n, D) float32 unit embeddings of sentences, each with the `learned` vectors before it if there are some."""
    device = tower.token_embedding.weight.device
    ids, valid = tokenizer(texts)
    length = max(int(valid.sum(1).max()), 1)  # padding is masked everywhere: cutting it off changes only the time
    prompt = None if learned is None else learned.to(device)
    return F.normalize(tower(ids[:, :length].to(device), valid[:, :length].to(device), prompt).float(), dim=-1)
