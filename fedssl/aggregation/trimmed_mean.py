"""The mean of every coordinate without its extremes."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from fedssl.aggregation.robust import RobustAggregation
from fedssl.messages import Tensors


class TrimmedMean(RobustAggregation):
    """Coordinate-wise trimmed mean of the clients' changes (Yin et al. 2018, arXiv 1803.01498, section 4).

    Args:
        trim: Share of the clients that is left out at each end, rounded down. It takes 1 / trim clients.

    Raises:
        ValueError: ``trim`` is not between 0 and 0.5.
    """

    def __init__(self, trim: float = 0.2) -> None:
        if not 0 < trim < 0.5:
            raise ValueError(f"trim must lie between 0 and 0.5, got {trim}")
        self.trim = trim

    def __str__(self) -> str:
        return f"TrimmedMean with trim {self.trim:g}"

    def least(self) -> int:
        return next(clients for clients in count(max(3, int(1 / self.trim))) if self._cut(clients))

    def combine(self, clients: list[Tensors]) -> Tensors:
        cut = self._cut(len(clients))
        return {key: trimmed_mean(torch.stack([client[key] for client in clients]), cut) for key in clients[0]}

    def _cut(self, clients: int) -> int:
        return int(self.trim * clients)


def trimmed_mean(values: Tensor, cut: int) -> Tensor:
    """Mean over the first dimension without the ``cut`` smallest and the ``cut`` largest of each coordinate.

    Args:
        values: (clients, ...).
        cut: Fewer than half of the clients.
    """
    return values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0)
