"""Memories of normal patch tokens: how far a patch is from all that is known to be normal.

`Neighbours` keeps tokens (as PatchCore, Roth et al., CVPR 2022, which also selects them by greedy k-centre);
`Subspace` keeps the principal directions of the tokens (as SubspaceAD). Nothing is trained.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24
"""Similarities that are held at once."""
VARIANCE = 0.95
"""Share of the tokens' variance that the subspace explains."""


def unit_tokens(layers: Sequence[Tensor]) -> Tensor:
    """Patch tokens (..., D) of one or several blocks -> float32 unit vectors (..., D * blocks): those of several are
    made unit vectors one by one and then joined, so that a cosine is the mean of theirs."""
    joined = torch.cat([F.normalize(layer.float(), dim=-1) for layer in layers], dim=-1)
    return joined / len(layers) ** 0.5


def nearest(tokens: Tensor, memory: Tensor) -> Tensor:
    """1 - the cosine to the most similar token of the memory, exact, in blocks.

    tokens (..., D) and memory (M, D), float32 unit vectors on one device -> (...) float32 in [0, 2].
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    rows = max(1, BLOCK // max(1, len(memory)))
    similar = [(block @ memory.T).amax(dim=1) for block in flat.split(rows)]
    return (1 - torch.cat(similar)).clamp_(0, 2).view(tokens.shape[:-1])


class Neighbours(NamedTuple):
    """The tokens themselves: a patch's distance is 1 - the cosine to the nearest."""

    tokens: Tensor
    """(M, D) float32 unit vectors"""

    @classmethod
    def fit(cls, tokens: Tensor) -> "Neighbours":
        """Of float32 unit vectors (M, D)."""
        return cls(tokens)

    def check(self) -> None:
        """ValueError if they are no such tokens."""
        if self.tokens.ndim != 2 or not self.tokens.numel():
            raise ValueError("its tokens are not a table")
        if ((self.tokens.norm(dim=1) - 1).abs() > 1e-3).any():
            raise ValueError("its tokens are not of length 1")

    def distances(self, tokens: Tensor) -> Tensor:
        """(..., D) float32 unit vectors -> (...) float32 in [0, 2]."""
        return nearest(tokens, self.tokens)


class Subspace(NamedTuple):
    """The mean of the tokens and the directions that explain VARIANCE of them: a patch's distance is the squared length
    of what they do not explain of it."""

    mean: Tensor
    """(D,) float32"""
    basis: Tensor
    """(k, D) float32, orthonormal rows; k may be 0"""

    @classmethod
    def fit(cls, tokens: Tensor) -> "Subspace":
        """Of float32 unit vectors (M, D)."""
        mean = tokens.mean(dim=0)
        centred = (tokens - mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(tokens))  # ascending
        share = values.flip(0).clamp(min=0).cumsum(0)
        count = int((share < VARIANCE * share[-1]).sum()) + 1 if share[-1] > 1e-12 else 0
        return cls(mean, vectors.flip(1)[:, :count].T.float().contiguous())

    def check(self) -> None:
        """ValueError if they are no such directions."""
        if self.mean.ndim != 1 or self.basis.ndim != 2 or self.basis.shape[1] != len(self.mean):
            raise ValueError("its subspace is not one")
        grams = self.basis @ self.basis.T
        if len(grams) > len(self.mean) or ((grams - torch.eye(len(grams))).abs() > 1e-3).any():
            raise ValueError("its basis is not orthonormal")

    def distances(self, tokens: Tensor) -> Tensor:
        """(..., D) float32 unit vectors -> (...) float32 in [0, 4]."""
        centred = tokens - self.mean
        rest = centred - (centred @ self.basis.T) @ self.basis
        return rest.square().sum(dim=-1)


Memory = Neighbours | Subspace
MEMORIES: dict[str, type[Memory]] = {"neighbours": Neighbours, "subspace": Subspace}
"""The kinds of memory by name: named tuples of float32 tensors, the first of which is as wide as a token."""


def coreset(tokens: Tensor, count: int, block: int = 1024) -> Tensor:
    """Indices (min(count, M),) int64 of greedy k-centre: the first token, then always the one that is farthest from all
    that are chosen, the first of several.

    tokens (M, D) float32 unit vectors. Exactly the greedy choice, yet nearly all of the work is in matrix products: a
    token's similarity to the chosen ones only grows, so that the next choices are sure to be among the `block` tokens
    that were least similar a while ago, until one of these is more similar than all others were.
    """
    if count >= len(tokens):
        return torch.arange(len(tokens), device=tokens.device)
    chosen = [0]
    similar = tokens @ tokens[0]
    similar[0] = torch.inf
    block = min(block, len(tokens))
    while len(chosen) < count:
        order = similar.argsort(stable=True)
        inside = order[:block].sort().values
        outside = similar[order[block]] if block < len(tokens) else similar.new_tensor(torch.inf)
        candidates, known = tokens[inside], similar[inside]
        among = candidates @ candidates.T
        new: list[int] = []
        while len(chosen) + len(new) < count:
            i = int(known.argmin())
            if known[i] > outside or (new and known[i] == outside):  # somebody outside may be as far or farther
                break
            new.append(i)
            known = torch.maximum(known, among[i])
            known[i] = torch.inf
        picked = inside[torch.tensor(new, device=tokens.device)]
        similar = torch.maximum(similar, (tokens @ tokens[picked].T).amax(dim=1))
        similar[picked] = torch.inf
        chosen += picked.tolist()
    return torch.tensor(chosen, device=tokens.device)
