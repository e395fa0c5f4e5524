"""SALF: layer-wise mean that uses late clients, which have finished the last layers only."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from fedssl.protocol.messages import Tensors, part_of
from fedssl.server.aggregation.rule import Aggregation, Update, difference_to

Rule = Literal["contributors", "unbiased", "all"]


class StragglerMean(Aggregation):
    """Layer-wise mean for clients that send a suffix of the network (SALF; Lang et al. 2024, arXiv 2403.18375).

    U clients sent at least one layer, and U_l of them sent layer l. Their mean is m_l, the global value is w_l:

    - ``contributors``: m_l (our reading of the paper's rule where p_l is negligible).
    - ``unbiased``: (m_l - p_l w_l) / (1 - p_l), the paper's rule as far as it could be reconstructed. p_l is the chance
      that nobody reaches layer l, ((rank_l - 1) / L)^U with rank 1 for the last of L layers, which holds if all clients
      are late at a uniformly distributed depth. A layer that every client sent has m_l (ours): then not all were late.
    - ``all``: w_l + (U_l / U) (m_l - w_l), as in the authors' code: a client that did not finish a layer counts as
      unchanged.

    A layer that nobody sent keeps its value. All clients have equal weight, as in the paper. A layer is a part that
    travels as a whole, such as a transformer block (our reading: the code counts single tensors).

    Args:
        rule: Rule of the mean: ``contributors``, ``unbiased`` or ``all``.
    """

    def __init__(self, rule: Rule = "contributors") -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
        self.rule = rule

    def begin_round(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._clients = 0

    def add(self, update: Update) -> None:
        for key, tensor in update.tensors.items():
            difference = difference_to(self._reference[key], tensor)
            self._sums[key] = self._sums[key].add_(difference) if key in self._sums else difference
            self._counts[key] = self._counts.get(key, 0) + 1
        self._clients += 1

    def finish(self) -> Tensors:
        layers = list(dict.fromkeys(part_of(key) for key in self._reference))
        ranks = {layer: len(layers) - position for position, layer in enumerate(layers)}
        return {
            key: self._step(key, reference, empty_probability(ranks[part_of(key)], len(layers), self._clients))
            for key, reference in self._reference.items()
        }

    def _step(self, key: str, reference: Tensor, empty: float) -> Tensor:
        if key not in self._sums:
            return reference
        divisors = {"contributors": float(self._counts[key]), "all": float(self._clients)}
        # p_l assumes that all clients are late. If all are punctual, dividing by 1 - p_l would only enlarge the step:
        # with ten clients it would about double that of a first layer.
        certain = self._counts[key] == self._clients
        divisors["unbiased"] = self._counts[key] * (1 if certain else 1 - empty)
        return (reference + self._sums[key] / divisors[self.rule]).to(reference.dtype)


def empty_probability(rank: int, layers: int, clients: int) -> float:
    """Return the chance that no client reaches a layer, if each stops after a uniformly distributed number of layers.

    Args:
        rank: Position from the end: 1 for the last layer, which backward finishes first.
        layers: Number of trained layers.
        clients: Number of clients in the round.
    """
    return ((rank - 1) / layers) ** clients
