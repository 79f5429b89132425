"""Muon, the optimiser of matrices."""

import torch
from torch import Tensor, nn


class Muon:
    """Momentum whose matrices are made orthogonal before the step (Jordan et al., 2024), scaled to AdamW's step size.

    Queries, keys and values are taken apart; matrices of one shape are treated together."""

    def __init__(self, parameters: dict[str, nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.buffers = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for name, p in self.parameters.items():
            assert p.grad is not None
            buffer = self.buffers[name].lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(buffer, self.momentum)
            rows = p.shape[1] if "qkv" in name or "in_proj" in name else p.shape[0]
            for part, weights in zip(update.split(rows), p.split(rows), strict=True):
                stacks.setdefault(part.shape, []).append((part, weights))
        for shape, pairs in stacks.items():
            steps = orthogonalise(torch.stack([update for update, _ in pairs])) * (0.2 * max(shape) ** 0.5)
            for (_, weights), step in zip(pairs, steps, strict=True):
                weights.mul_(1 - lr * decay).sub_(step, alpha=lr)


def orthogonalise(x: Tensor) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrix of each in (k, m, n)."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
