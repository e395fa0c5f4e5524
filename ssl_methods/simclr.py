"""SimCLR: two views of an image attract, all other images of the batch repel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import TEMPERATURES, check_at_least
from ssl_methods.ssl_method import SSLMethod, Views


class SimCLR(SSLMethod):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709) with the heads of LW-FedSSL section 4.

    No predictor and no target branch. Both views pass the network one after the other, so batch norms see one
    view at a time (the original concatenates them).

    Args:
        foundation: Backbone, augmentation and optimizer.
        temperature: Temperature of NT-Xent.
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


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent: each of the 2B views must recognise the other view of its image among all others of the batch.

    The same mathematics as lightly's ``NTXentLoss`` without a memory bank (SimCLR, arXiv 2002.05709, equation 1), but
    without boolean indexing: its shapes do not depend on data, so that its cost can be planned without data.

    Args:
        first: Embeddings (B, D) of one view of each image.
        second: Embeddings (B, D) of the other view.
        temperature: Divides the cosine similarities.

    Returns:
        Mean loss over the 2B views, a scalar.
    """
    count = len(first)
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = views @ views.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=views.device)
    partner = torch.arange(2 * count, device=views.device).roll(count)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), partner)
