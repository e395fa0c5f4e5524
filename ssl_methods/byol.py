"""BYOL: the online branch predicts what a slowly moving copy of itself gives for the other view."""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, SimCLRProjectionHead
from torch import nn

from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import check_at_least
from ssl_methods.ssl_method import MomentumMethod, Views


class BYOL(MomentumMethod):
    """BYOL (Grill et al. 2020, arXiv 2006.07733) with the heads of LW-FedSSL section 4.

    The loss is the mean over both directions of 2 - 2 cos(prediction, target projection); the original sums
    them, a factor of two. The target starts as a copy of the online branch in every round.

    Args:
        foundation: Backbone, augmentation and optimizer.
        momentum: Momentum of the target branch.
        hidden_dim: Width of the hidden layers of both heads.
        output_dim: Width of projections and predictions.
        projector_layers: Linear layers of the projector.
    """

    def __init__(
        self,
        foundation: Foundation,
        momentum: float = 0.99,
        hidden_dim: int = 512,
        output_dim: int = 256,
        projector_layers: int = 3,
    ) -> None:
        super().__init__(foundation, momentum)
        check_at_least(1, hidden_dim=hidden_dim, output_dim=output_dim)
        check_at_least(2, projector_layers=projector_layers)
        self.projector = SimCLRProjectionHead(self.feature_dim, hidden_dim, output_dim, projector_layers)
        self.predictor = BYOLPredictionHead(output_dim, hidden_dim, output_dim)
        self.loss = NegativeCosineSimilarity()

    def heads(self) -> dict[str, nn.Module]:
        """Return projector and predictor."""
        return {"projector": self.projector, "predictor": self.predictor}

    def step(self, hidden: Views) -> StepOutput:
        """Compute the regression of each view's target projection from the other view."""
        assert self.target is not None
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        target_first, target_second = (self.target(view) for view in hidden)
        forward = self.loss(self.predictor(first), target_second)
        backward = self.loss(self.predictor(second), target_first)
        return StepOutput(2 + forward + backward, (first, second))
