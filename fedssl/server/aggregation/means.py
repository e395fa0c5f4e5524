"""FedAvg's mean, layer by layer."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fedssl.protocol.messages import Tensors, part_of
from fedssl.server.aggregation.rule import Aggregation, Update, difference_to, moved_by_gradients


class WeightedMean(Aggregation):
    """Mean weighted by the number of images (McMahan et al. 2017, arXiv 1602.05629).

    Every tensor is averaged over the clients that gave it. Only a running float32 sum of the differences to the
    reference is kept, so memory does not grow with the number of clients, and small updates of large weights lose no
    digits.
    """

    def begin_round(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, int] = {}

    def add(self, update: Update) -> None:
        for key, tensor in update.tensors.items():
            difference = difference_to(self._reference[key], tensor)
            if key in self._sums:
                self._sums[key].add_(difference, alpha=update.num_images)
            else:
                self._sums[key] = difference.mul_(update.num_images)
            self._totals[key] = self._totals.get(key, 0) + update.num_images

    def finish(self) -> Tensors:
        return {
            key: (reference + self._sums[key] / self._totals[key]).to(reference.dtype)
            if key in self._sums
            else reference
            for key, reference in self._reference.items()
        }


class UnchangedMean(WeightedMean):
    """Layer-wise mean over all clients of the round (the rule of CoCoFL's code, Pfeiffer et al., arXiv 2203.05468).

    w_j + r_j (m_j - w_j), where m_j is the mean of layer j over the clients that trained it, and r_j is the share of
    the round's images that those clients hold. This is FedAvg in which frozen layers stay as they were sent, so layers
    that few clients train move slowly. :class:`fedssl.WeightedMean` is the other rule, with r_j = 1. Which of them CAFF
    uses is not known; this one is our reading.
    """

    def begin_round(self, reference: Tensors) -> None:
        super().begin_round(reference)
        self._images = 0

    def add(self, update: Update) -> None:
        super().add(update)
        self._images += update.num_images

    def finish(self) -> Tensors:
        self._totals = dict.fromkeys(self._totals, self._images)
        return super().finish()


Rule = Literal["contributors", "all"]


class StragglerMean(UnchangedMean):
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

    def add(self, update: Update) -> None:
        super().add(replace(update, num_images=1))

    def finish(self) -> Tensors:
        return super().finish() if self.rule == "all" else WeightedMean.finish(self)


ADAPTER = re.compile(r"adapter\.(\d+)\.(\d+)/(\w+)\.(down|up)")


class NormWeightedMean(WeightedMean):
    """Mean of low-rank adapters weighted by the norm of each client's update (HetLoRA, Cho et al., arXiv 2401.06432).

    Adapters of smaller rank count as padded with zeros; a client's weight is its S_k / sum S, with S_k the Frobenius
    norm of ``up @ down`` over all adapted weights together. Everything else, classifier and final norm, is averaged by
    images. Ranks that no client of a round trained stay as they are (our reading; zeros would erase them). The mean of
    ``up`` times the mean of ``down`` is not the mean of the products, as in the paper.
    """

    def begin_round(self, reference: Tensors) -> None:
        super().begin_round(reference)
        self._norms = 0.0
        self._adapted: Tensors = {}

    def add(self, update: Update) -> None:
        adapters = {key: tensor for key, tensor in update.tensors.items() if ADAPTER.fullmatch(key)}
        others = {key: tensor for key, tensor in update.tensors.items() if key not in adapters}
        super().add(replace(update, tensors=others))
        if not adapters:
            return
        norm = max(update_norm(adapters), torch.finfo(torch.float32).tiny)
        self._norms += norm
        for key, tensor in adapters.items():
            self._adapted[key] = self._adapted.get(key, 0) + tensor.to(self._reference[key].device).float() * norm

    def finish(self) -> Tensors:
        given = {key: (total / self._norms).to(self._reference[key].dtype) for key, total in self._adapted.items()}
        return super().finish() | given


def update_norm(adapters: Tensors) -> float:
    """Return the Frobenius norm of all updates ``up @ down`` together; several adapters of one weight add up.

    It is the root of the sum of all entries of (up' up) * (down down'), so that no update is multiplied out.
    """
    factors: dict[tuple[str, str], dict[str, dict[int, Tensor]]] = defaultdict(lambda: {"down": {}, "up": {}})
    for key, tensor in adapters.items():
        block, number, target, side = ADAPTER.fullmatch(key).groups()  # type: ignore[union-attr]
        factors[block, target][side][int(number)] = tensor.double()
    total = 0.0
    for sides in factors.values():
        numbers = sorted(sides["down"])
        down = torch.cat([sides["down"][number] for number in numbers])
        up = torch.cat([sides["up"][number] for number in numbers], dim=1)
        total += float(((up.T @ up) * (down @ down.T)).sum())
    return max(total, 0.0) ** 0.5


class LDAWA(Aggregation):
    """Layer-wise divergence-aware aggregation (Rehman et al. 2023, arXiv 2307.07393).

    w_l = mean over clients of cos(w_l, w_{k,l}) w_{k,l}: every client's layer is scaled by the cosine between it and
    the global layer that was sent out. Clients weigh the same, and the cosines are not normalised, as in the authors'
    code: a layer that turns also shrinks. A layer is the parameters of a part, such as a transformer block (our
    reading; a bias or a norm with a cosine of its own would shrink by a fifth in a round). Batch statistics are
    averaged as they are. Where one of the two layers is zero the cosine counts as 1.
    """

    def begin_round(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, update: Update) -> None:
        moved = {key: tensor for key, tensor in update.tensors.items() if moved_by_gradients(key)}
        cosines = angular_weights(self._reference, moved)
        for key, tensor in update.tensors.items():
            scaled = tensor.to(self._reference[key].device).float() * (cosines[part_of(key)] if key in moved else 1)
            self._sums[key] = self._sums[key].add_(scaled) if key in self._sums else scaled
            self._counts[key] = self._counts.get(key, 0) + 1

    def finish(self) -> Tensors:
        return {
            key: (self._sums[key] / self._counts[key]).to(reference.dtype) if key in self._sums else reference
            for key, reference in self._reference.items()
        }


def angular_weights(reference: Tensors, own: Tensors) -> dict[str, float]:
    """Return the cosine between each part of ``own`` and the reference's; 1 where either is zero."""
    products: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for key, tensor in own.items():
        mine, theirs = tensor.to(reference[key].device).double().flatten(), reference[key].double().flatten()
        for place, (left, right) in enumerate(((mine, theirs), (mine, mine), (theirs, theirs))):
            products[part_of(key)][place] += float(left @ right)
    return {part: dot / (a * b) ** 0.5 if a and b else 1.0 for part, (dot, a, b) in products.items()}
