"""SimSiam: one view's prediction of the other's projection, which receives no gradient."""

from __future__ import annotations

from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import nn
from torch.nn.functional import cosine_similarity

from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import check_at_least
from ssl_methods.ssl_method import SSLMethod, Views


class SimSiam(SSLMethod):
    """SimSiam (Chen, He 2021, arXiv 2011.10566), without negatives and without a target branch to hold.

    The loss is -(cos(p_1, stop(z_2)) + cos(p_2, stop(z_1))) / 2 (section 3), with p the prediction and z the projection
    of a view. The heads are those of section 3: a projector of three layers that ends in a batch norm,
    and a predictor with a bottleneck. Widths of 2048 are for large devices: the defaults are those of the other
    methods, with the paper's ratio of 4 between projections and bottleneck.

    Args:
        foundation: Backbone, augmentation and optimizer.
        hidden_dim: Width of the projector's hidden layers.
        output_dim: Width of projections and predictions.
        bottleneck_dim: Width of the predictor's hidden layer.

    Raises:
        ValueError: A width is below 1.
    """

    def __init__(
        self, foundation: Foundation, hidden_dim: int = 512, output_dim: int = 256, bottleneck_dim: int = 64
    ) -> None:
        super().__init__(foundation)
        check_at_least(1, hidden_dim=hidden_dim, output_dim=output_dim, bottleneck_dim=bottleneck_dim)
        self.projector = SimSiamProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.predictor = SimSiamPredictionHead(output_dim, bottleneck_dim, output_dim)

    def heads(self) -> dict[str, nn.Module]:
        """Return projector and predictor."""
        return {"projector": self.projector, "predictor": self.predictor}

    def step(self, hidden: Views) -> StepOutput:
        """Compute the negative cosine between each view's prediction and the other view's fixed projection."""
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        forward = cosine_similarity(self.predictor(first), second.detach()).mean()
        backward = cosine_similarity(self.predictor(second), first.detach()).mean()
        return StepOutput(-(forward + backward) / 2, (first, second))
