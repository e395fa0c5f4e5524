"""SALF: layer-wise mean that uses late clients, which have finished the last layers only."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from fedssl.protocol.messages import Tensors
from fedssl.server.aggregation.rule import Aggregation, Update, difference_to

Rule = Literal["contributors", "all"]


class StragglerMean(Aggregation):
    """Layer-wise mean for clients that send a suffix of the network (SALF; Lang et al. 2024, arXiv 2403.18375).

    U clients sent at least one layer, and U_l of them sent layer l. Their mean is m_l, the global value is w_l:

    - ``contributors``: m_l, our reading of the paper's rule where it is negligible that nobody reaches layer l. Its
      correction for that chance is left out: what we could read of it was not enough to compute it.
    - ``all``: w_l + (U_l / U) (m_l - w_l), as in the authors' code: a client that did not finish a layer counts as
      unchanged.

    A layer that nobody sent keeps its value. All clients have equal weight, as in the paper. A layer is a part that
    travels as a whole, such as a transformer block (our reading: the code counts single tensors).

    Args:
        rule: Rule of the mean: ``contributors`` or ``all``.
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
        return {key: self._step(key, reference) for key, reference in self._reference.items()}

    def _step(self, key: str, reference: Tensor) -> Tensor:
        if key not in self._sums:
            return reference
        divisor = float(self._clients if self.rule == "all" else self._counts[key])
        return (reference + self._sums[key] / divisor).to(reference.dtype)
