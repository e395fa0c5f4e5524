"""Robust aggregation rules: each sees all clients' changes of a layer together."""

from __future__ import annotations

from abc import abstractmethod
from itertools import count

import torch
from torch import Tensor

from fedssl.protocol.messages import Tensors, part_of
from fedssl.server.aggregation.rule import Aggregation, Update, difference_to
from fedssl.server.participation import Participation


class RobustAggregation(Aggregation):
    """Base of rules that combine, layer by layer, the changes of the clients that sent the layer.

    All clients have equal weight, because their numbers of images are their own claims. All changes are held until the
    end of the round, so memory grows with the cohort. A layer is a part that travels as a whole, such as a transformer
    block.

    Every rule needs a minimum number of clients. Below it, the result would be the plain mean, liars included. A run
    with smaller cohorts is refused before it trains. If too few clients send a layer, because they fail, are late or do
    not train it, the layer keeps its global value in that round.
    """

    def begin(self, participation: Participation, rounds: int) -> None:
        """Start a run, and refuse cohorts that are too small for the rule.

        Raises:
            ValueError: The cohort has fewer clients than ``least``.
        """
        if participation.size < self.least():
            raise ValueError(
                f"participation {participation.size} clients a round: {self} needs at least {self.least()}, below that "
                "it leaves nobody out; see --model.participation and --model.aggregation"
            )

    def begin_round(self, reference: Tensors) -> None:
        self._reference = reference
        self._changes: dict[str, list[Tensors]] = {}

    def add(self, update: Update) -> None:
        layers: dict[str, Tensors] = {}
        for key, tensor in update.tensors.items():
            layers.setdefault(part_of(key), {})[key] = difference_to(self._reference[key], tensor)
        for layer, change in layers.items():
            self._changes.setdefault(layer, []).append(change)

    def finish(self) -> Tensors:
        changes: Tensors = {}
        few = {layer: len(clients) for layer, clients in self._changes.items() if len(clients) < self.least()}
        self.refused = {layer: f"{self} needs {self.least()} clients, {given} gave it" for layer, given in few.items()}
        for layer, clients in self._changes.items():
            if layer not in self.refused:
                changes |= self.combine(clients)
        self._changes = {}
        return {
            key: (reference + changes[key]).to(reference.dtype) if key in changes else reference
            for key, reference in self._reference.items()
        }

    @abstractmethod
    def __str__(self) -> str:
        """Return the name of the rule and its settings, for messages."""

    @abstractmethod
    def least(self) -> int:
        """Return the minimum number of clients with which the rule bounds a liar's influence."""

    @abstractmethod
    def combine(self, clients: list[Tensors]) -> Tensors:
        """Combine the clients' changes of one layer.

        Args:
            clients: Change of each client that sent the layer, all with the same names and shapes; ``least`` or more.
        """


class TrimmedMean(RobustAggregation):
    """Coordinate-wise trimmed mean of the clients' changes (Yin et al. 2018, arXiv 1803.01498, section 4).

    Args:
        trim: Fraction of the clients left out at each end, rounded down. The rule needs at least 1 / trim clients.

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
        # Counted up, because 1 / trim is not exact in floating point.
        return next(clients for clients in count(max(3, int(1 / self.trim))) if self._cut(clients))

    def combine(self, clients: list[Tensors]) -> Tensors:
        cut = self._cut(len(clients))
        return {key: trimmed_mean(torch.stack([client[key] for client in clients]), cut) for key in clients[0]}

    def _cut(self, clients: int) -> int:
        return int(self.trim * clients)


def trimmed_mean(values: Tensor, cut: int) -> Tensor:
    """Return the mean over the first dimension without the ``cut`` smallest and the ``cut`` largest of each coordinate.

    Args:
        values: Values of shape (clients, ...).
        cut: Number of values to leave out at each end; fewer than half of the clients.
    """
    return values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0)


class CoordinateMedian(RobustAggregation):
    """Coordinate-wise median of the clients' changes (Yin et al. 2018, arXiv 1803.01498, section 4).

    For an even number of clients it is the mean of the two in the middle. The rule holds as long as fewer than half of
    the clients lie, at the price of a bias where the clients' data differ. It needs three clients, since the median of
    two is their mean.
    """

    def __str__(self) -> str:
        return "CoordinateMedian"

    def least(self) -> int:
        return 3

    def combine(self, clients: list[Tensors]) -> Tensors:
        cut = (len(clients) - 1) // 2
        return {key: trimmed_mean(torch.stack([client[key] for client in clients]), cut) for key in clients[0]}


class Krum(RobustAggregation):
    """Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries", NeurIPS, section 4).

    A client's score is the sum of squared distances to its n - byzantine - 2 nearest others. The result is the mean of
    the ``keep`` clients with the lowest scores. Our deviation: clients are chosen for each layer on its own, because a
    client may send some layers only.

    Args:
        byzantine: Number of clients that may lie.
        keep: Number of clients in the mean; 1 is Krum, more is Multi-Krum.

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
    """Return the sum of squared distances of each vector to its nearest others.

    Args:
        vectors: Vectors of shape (clients, D).
        byzantine: Number of clients that may lie; the score counts the clients - byzantine - 2 nearest others.
    """
    squared = torch.stack([(vectors - vector).square().sum(dim=1) for vector in vectors])
    nearest = squared.sort(dim=1).values[:, 1:]  # without the first, the distance of each vector to itself
    return nearest[:, : len(vectors) - byzantine - 2].sum(dim=1)
