"""FedAvg's mean in which a layer that a client did not train counts as unchanged."""

from __future__ import annotations

from fedssl.aggregation.weighted_mean import WeightedMean
from fedssl.messages import Tensors


class UnchangedMean(WeightedMean):
    """Layer-wise mean over all clients of the round (the rule of CoCoFL's code, Pfeiffer et al., arXiv 2203.05468).

    w_j + r_j (m_j - w_j), where m_j is the mean of layer j over the clients that trained it, and r_j is the share of
    the round's images that those clients hold. This is FedAvg in which frozen layers stay as they were sent, so layers
    that few clients train move slowly. :class:`fedssl.WeightedMean` is the other rule, with r_j = 1. Which of them CAFF
    uses is not known; this one is our reading.
    """

    def begin(self, reference: Tensors) -> None:
        super().begin(reference)
        self._images = 0

    def add(self, tensors: Tensors, num_images: int) -> None:
        super().add(tensors, num_images)
        self._images += num_images

    def finish(self) -> Tensors:
        self._totals = dict.fromkeys(self._totals, self._images)
        return super().finish()
