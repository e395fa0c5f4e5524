"""The median of every coordinate."""

from __future__ import annotations

import torch

from fedssl.aggregation.robust import RobustAggregation
from fedssl.aggregation.trimmed_mean import trimmed_mean
from fedssl.messages import Tensors


class CoordinateMedian(RobustAggregation):
    """Coordinate-wise median of the clients' changes (Yin et al. 2018, arXiv 1803.01498, section 4).

    Of an even number of clients, the mean of the two in the middle. It holds as long as fewer than half of the clients
    lie, at the price of a bias where clients' data differ. It takes three: of two it would be the mean.
    """

    def __str__(self) -> str:
        return "CoordinateMedian"

    def least(self) -> int:
        return 3

    def combine(self, clients: list[Tensors]) -> Tensors:
        cut = (len(clients) - 1) // 2
        return {key: trimmed_mean(torch.stack([client[key] for client in clients]), cut) for key in clients[0]}
