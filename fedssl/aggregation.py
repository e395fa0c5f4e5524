"""Aggregation rules: how the clients' results become one."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fedssl.messages import Tensors


class Aggregation(ABC):
    """Combines floating-point tensors of several clients, given one client at a time.

    A rule is used once a round: :meth:`begin`, :meth:`add` for each client in ascending order of client id,
    :meth:`finish`. Integer tensors never reach it.
    """

    @abstractmethod
    def begin(self, reference: Tensors) -> None:
        """Starts a round from the global tensors that were sent out."""

    @abstractmethod
    def add(self, tensors: Tensors, num_images: int) -> None:
        """Takes one client's tensors; they must not be kept, the next client overwrites them."""

    @abstractmethod
    def finish(self) -> Tensors:
        """The aggregated tensors, with the keys of the reference."""


class WeightedMean(Aggregation):
    """Mean weighted by the number of images (McMahan et al. 2017, arXiv 1602.05629).

    Only a running float32 sum of the differences to the reference is kept, so memory does not grow with the
    number of clients, and small updates of large weights lose no digits.
    """

    def begin(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._total = 0

    def add(self, tensors: Tensors, num_images: int) -> None:
        for key, reference in self._reference.items():
            difference = tensors[key].to(reference.device).float() - reference.float()
            if key in self._sums:
                self._sums[key].add_(difference, alpha=num_images)
            else:
                self._sums[key] = difference.mul_(num_images)
        self._total += num_images

    def finish(self) -> Tensors:
        return {
            key: (reference + self._sums[key] / self._total).to(reference.dtype)
            for key, reference in self._reference.items()
        }
