"""Krum: the clients whose neighbours are nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from fedssl.aggregation.robust import RobustAggregation
from fedssl.messages import Tensors


class Krum(RobustAggregation):
    """Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries", NeurIPS, section 4).

    A client's score is the sum of squared distances to its n - byzantine - 2 nearest others; the mean of the ``keep``
    clients with the lowest scores counts. Our deviation: clients are chosen for each layer on its own, because a client
    may give some layers only.

    Args:
        byzantine: Clients that may lie.
        keep: Clients whose mean is taken; 1 is Krum, more is Multi-Krum.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, byzantine: int, keep: int = 1) -> None:
        if byzantine < 1 or keep < 1:
            raise ValueError(f"byzantine and keep must be at least 1, got {byzantine} and {keep}")
        self.byzantine, self.keep = byzantine, keep

    def __str__(self) -> str:
        return f"Krum with byzantine={self.byzantine} and keep={self.keep}"

    def least(self) -> int:
        return max(2 * self.byzantine + 3, self.byzantine + self.keep + 2)

    def combine(self, clients: list[Tensors]) -> Tensors:
        vectors = torch.stack([torch.cat([tensor.flatten() for tensor in client.values()]) for client in clients])
        chosen = krum_scores(vectors, self.byzantine).argsort(stable=True)[: self.keep].tolist()
        return {key: torch.stack([clients[i][key] for i in chosen]).mean(dim=0) for key in clients[0]}


def krum_scores(vectors: Tensor, byzantine: int) -> Tensor:
    """Sum of squared distances of each vector to its nearest others.

    Args:
        vectors: (clients, D).
        byzantine: Clients that may lie; the score counts the clients - byzantine - 2 nearest others.
    """
    squared = torch.stack([(vectors - vector).square().sum(dim=1) for vector in vectors])
    nearest = squared.sort(dim=1).values[:, 1:]
    return nearest[:, : len(vectors) - byzantine - 2].sum(dim=1)
