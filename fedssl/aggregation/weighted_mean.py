"""FedAvg's mean, layer by layer."""

from __future__ import annotations

from torch import Tensor

from fedssl.aggregation.rule import Aggregation, difference_to
from fedssl.messages import Tensors


class WeightedMean(Aggregation):
    """Mean weighted by the number of images (McMahan et al. 2017, arXiv 1602.05629).

    Every tensor is averaged over the clients that gave it. Only a running float32 sum of the differences to the
    reference is kept, so memory does not grow with the number of clients, and small updates of large weights lose no
    digits.
    """

    def begin(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, int] = {}

    def add(self, tensors: Tensors, num_images: int) -> None:
        for key, tensor in tensors.items():
            difference = difference_to(self._reference[key], tensor)
            if key in self._sums:
                self._sums[key].add_(difference, alpha=num_images)
            else:
                self._sums[key] = difference.mul_(num_images)
            self._totals[key] = self._totals.get(key, 0) + num_images

    def finish(self) -> Tensors:
        return {
            key: (reference + self._sums[key] / self._totals[key]).to(reference.dtype)
            if key in self._sums
            else reference
            for key, reference in self._reference.items()
        }
