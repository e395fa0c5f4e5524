"""L-DAWA: a client's layer counts the less, the further its direction is from the global layer's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fedssl.aggregation.rule import Aggregation
from fedssl.messages import Tensors


class LDAWA(Aggregation):
    """Layer-wise divergence-aware aggregation (Rehman et al. 2023, arXiv 2307.07393).

    w_l = mean over clients of cos(w_l, w_{k,l}) w_{k,l}: every client's layer is scaled by the cosine between it and
    the global layer that was sent out. Clients weigh the same, and the cosines are not normalised, as in the authors'
    code: a layer that turns also shrinks. A layer is one tensor; where one of the two is zero the cosine counts as 1.
    """

    def begin(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, tensors: Tensors, num_images: int) -> None:
        for key, tensor in tensors.items():
            own = tensor.to(self._reference[key].device).float()
            scaled = own * angular_weight(self._reference[key].float(), own)
            self._sums[key] = self._sums[key].add_(scaled) if key in self._sums else scaled
            self._counts[key] = self._counts.get(key, 0) + 1

    def finish(self) -> Tensors:
        return {
            key: (self._sums[key] / self._counts[key]).to(reference.dtype) if key in self._sums else reference
            for key, reference in self._reference.items()
        }


def angular_weight(reference: Tensor, own: Tensor) -> Tensor:
    """Cosine between two tensors of one shape, 1 where either is zero."""
    cosine = F.cosine_similarity(reference.flatten(), own.flatten(), dim=0)
    return cosine.where(reference.any() & own.any(), cosine.new_ones(()))
