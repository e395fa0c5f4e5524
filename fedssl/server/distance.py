"""Distance between the local models of a round."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedssl.protocol.messages import Tensors


class ClientDistance:
    """L2 distance between the weights of two clients of a round: the root mean square over all pairs.

    It says how far local training drives clients apart, which is the reason that LW-FedSSL (fourth version, section
    4.7 and figure 6) gives for its robustness to partial participation. Deviation: the paper averages the distances of
    one random client to the others. The root mean square over all pairs needs two sums and no client's weights:
    sum over pairs ``|x_i - x_j|^2 = n sum |x_i|^2 - |sum x_i|^2``.

    A weight that not all clients trained counts with the pairs of those that did.

    Args:
        reference: Global tensors from which the clients started, by key.
        parameters: Keys of the weights; other tensors (statistics) are left out.
    """

    def __init__(self, reference: Tensors, parameters: Iterable[str]) -> None:
        self._reference = {key: reference[key] for key in parameters}
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, float] = {}
        self._clients: dict[str, int] = {}

    @torch.no_grad()
    def add(self, tensors: Tensors) -> None:
        """Add one client's tensors; those that are no weights are left out."""
        for key, own in self._reference.items():
            if key in tensors:
                # Changes are small beside the weights, so that less is lost in the difference of two large sums.
                change = tensors[key].to(own.device).double() - own.double()
                self._sums[key] = self._sums[key].add_(change) if key in self._sums else change.clone()
                self._squares[key] = self._squares.get(key, 0.0) + float(change.square().sum())
                self._clients[key] = self._clients.get(key, 0) + 1

    def value(self) -> float:
        """Return the distance; NaN if no weight was trained by two clients."""
        several = [key for key, clients in self._clients.items() if clients > 1]
        squared = [self._mean_square(key) for key in several]
        return math.sqrt(max(0.0, sum(squared))) if squared else math.nan

    def _mean_square(self, key: str) -> float:
        """Compute the mean square over all pairs of clients that trained this tensor."""
        clients, total = self._clients[key], float(self._sums[key].square().sum())
        return 2 * (clients * self._squares[key] - total) / (clients * (clients - 1))
