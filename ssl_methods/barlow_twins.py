"""Barlow Twins: the outputs of two views correlate dimension by dimension, and different dimensions do not."""

from __future__ import annotations

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import nn

from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import check_at_least
from ssl_methods.ssl_method import SSLMethod, Views


class BarlowTwins(SSLMethod):
    """Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), without negatives, predictor or target branch.

    The loss is sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2, with C the correlations over the batch between
    both views' projections. Small batches estimate them badly. The projector has three linear layers as in the paper,
    whose 8192 units are far more than a small device holds: the defaults are those of the other methods here.

    Args:
        foundation: Backbone, augmentation and optimizer.
        redundancy: lambda, the weight of correlations between different dimensions.
        hidden_dim: Width of the projector's hidden layers.
        output_dim: Width of the projections.

    Raises:
        ValueError: A width is below 1, or the weight is negative.
    """

    def __init__(
        self, foundation: Foundation, redundancy: float = 5e-3, hidden_dim: int = 512, output_dim: int = 256
    ) -> None:
        super().__init__(foundation)
        check_at_least(1, hidden_dim=hidden_dim, output_dim=output_dim)
        if not 0 <= redundancy < float("inf"):
            raise ValueError(f"redundancy must be at least 0 and finite, got {redundancy}")
        self.projector = BarlowTwinsProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.loss = BarlowTwinsLoss(redundancy)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": self.projector}

    def step(self, hidden: Views) -> StepOutput:
        """Compute the loss of the cross-correlation between the two views' projections."""
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        return StepOutput(self.loss(first, second), (first, second))
