"""SimCLR: two views of an image attract, all other images of the batch repel."""

from __future__ import annotations

from lightly.models.modules import SimCLRProjectionHead
from torch import nn

from ssl_methods.losses import TEMPERATURES, nt_xent
from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import check_at_least
from ssl_methods.ssl_method import SSLMethod, Views


class SimCLR(SSLMethod):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709) with the heads of LW-FedSSL section 4.

    No predictor and no target branch. Both views pass the network one after the other, so batch norms see one
    view at a time (the original concatenates them).

    Args:
        foundation: Backbone, augmentation and optimizer.
        temperature: Of NT-Xent.
        hidden_dim: Width of the projector's hidden layers.
        output_dim: Width of the projections.
        projector_layers: Linear layers of the projector.
    """

    def __init__(
        self,
        foundation: Foundation,
        temperature: float = 0.2,
        hidden_dim: int = 512,
        output_dim: int = 256,
        projector_layers: int = 3,
    ) -> None:
        super().__init__(foundation)
        check_at_least(*TEMPERATURES, temperature=temperature)
        check_at_least(1, hidden_dim=hidden_dim, output_dim=output_dim)
        check_at_least(2, projector_layers=projector_layers)
        self.projector = SimCLRProjectionHead(self.feature_dim, hidden_dim, output_dim, projector_layers)
        self.temperature = temperature

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector."""
        return {"projector": self.projector}

    def step(self, hidden: Views) -> StepOutput:
        """Compute NT-Xent between the projections of both views."""
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        return StepOutput(nt_xent(first, second, self.temperature), (first, second))
