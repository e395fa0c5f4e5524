"""HetLoRA's mean of adapters of different ranks."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import Tensor

from fedssl.aggregation.weighted_mean import WeightedMean
from fedssl.messages import Tensors

ADAPTER = re.compile(r"adapter\.(\d+)\.(\d+)/(\w+)\.(down|up)")


class NormWeightedMean(WeightedMean):
    """Mean of low-rank adapters weighted by the norm of each client's update (HetLoRA, Cho et al., arXiv 2401.06432).

    Adapters of smaller rank count as padded with zeros; a client's weight is its S_k / sum S, with S_k the Frobenius
    norm of ``up @ down`` over all adapted weights together. Everything else, classifier and final norm, is averaged by
    images. Ranks that no client of a round trained stay as they are (our reading; zeros would erase them). The mean of
    ``up`` times the mean of ``down`` is not the mean of the products, as in the paper.
    """

    def begin(self, reference: Tensors) -> None:
        super().begin(reference)
        self._norms = 0.0
        self._adapted: Tensors = {}

    def add(self, tensors: Tensors, num_images: int) -> None:
        adapters = {key: tensor for key, tensor in tensors.items() if ADAPTER.fullmatch(key)}
        super().add({key: tensor for key, tensor in tensors.items() if key not in adapters}, num_images)
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
    """Frobenius norm of the updates ``up @ down`` of all weights together; several adapters of one weight add up.

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
