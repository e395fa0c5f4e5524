"""VICReg: views agree, every dimension varies over the batch, and different dimensions do not vary together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import check_at_least
from ssl_methods.ssl_method import SSLMethod, Views

LARGEST_WEIGHT = 1e6


class VICReg(SSLMethod):
    """VICReg (Bardes, Ponce, LeCun 2022, arXiv 2105.04906, section 4), without negatives, predictor or target branch.

    The loss is invariance * s(Z, Z') + variance * (v(Z) + v(Z')) / 2 + covariance * (c(Z) + c(Z')). As in the authors'
    code, s is the mean over dimensions too and v is halved, where equations 5 and 6 sum. The projector has three linear
    layers as in the paper, whose 8192 units are far more than a small device holds: the defaults are those of the other
    methods here.

    Args:
        foundation: Backbone, augmentation and optimizer.
        invariance: lambda, the weight of the mean squared distance between the views.
        variance: mu, the weight of :func:`missing_deviation`.
        covariance: nu, the weight of :func:`shared_variation`.
        hidden_dim: Width of the projector's hidden layers.
        output_dim: Width of the projections.

    Raises:
        ValueError: A width is below 1, or a weight is negative.
    """

    def __init__(
        self,
        foundation: Foundation,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden_dim: int = 512,
        output_dim: int = 256,
    ) -> None:
        super().__init__(foundation)
        check_at_least(0, LARGEST_WEIGHT, invariance=invariance, variance=variance, covariance=covariance)
        check_at_least(1, hidden_dim=hidden_dim, output_dim=output_dim)
        self.projector = VICRegProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.weights = invariance, variance, covariance

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": self.projector}

    def step(self, hidden: Views) -> StepOutput:
        """Compute invariance, variance and covariance of the two views' projections."""
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        invariance, variance, covariance = self.weights
        loss = invariance * F.mse_loss(first, second)
        for projections in (first, second):
            loss = loss + variance / 2 * missing_deviation(projections) + covariance * shared_variation(projections)
        return StepOutput(loss, (first, second))


def missing_deviation(projections: Tensor) -> Tensor:
    """Compute v, what the deviations of (B, D) over the batch lack to 1, mean over dimensions (equations 1 and 2)."""
    return F.relu(1 - (projections.var(dim=0) + 1e-4).sqrt()).mean()


def shared_variation(projections: Tensor) -> Tensor:
    """Compute c, the squared covariances between different dimensions of (B, D), summed, over D (equations 3 and 4).

    The same mathematics as lightly's, but without boolean indexing: its shapes do not depend on data, so that its cost
    can be planned without data.
    """
    count, width = projections.shape
    centred = projections - projections.mean(dim=0)
    covariance = centred.T @ centred / (count - 1)
    itself = torch.eye(width, dtype=torch.bool, device=projections.device)
    return covariance.masked_fill(itself, 0).square().sum() / width
