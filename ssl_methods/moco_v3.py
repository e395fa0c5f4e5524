"""MoCo v3: contrast against a momentum branch within the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn

from ssl_methods.method import Foundation, StepOutput
from ssl_methods.setting_checks import TEMPERATURES, check_at_least
from ssl_methods.ssl_method import MomentumMethod, Views


class MoCoV3(MomentumMethod):
    """MoCo v3 (Chen et al. 2021, arXiv 2104.02057) as LW-FedSSL uses it (algorithms 2 and 4, section 4).

    Differences from the original: the patch embedding is trained, the momentum is constant, the loss is not
    multiplied by 2 * temperature, the target starts as a copy of the online branch in every round, and the batch norms
    at the end of the heads have a scale and a shift.

    Args:
        foundation: Backbone, augmentation and optimizer.
        temperature: Temperature of InfoNCE.
        momentum: Momentum of the target branch.
        hidden_dim: Width of the hidden layers of both heads.
        output_dim: Width of projections and predictions.
        projector_layers: Linear layers of the projector.
        predictor_layers: Linear layers of the predictor.
    """

    def __init__(
        self,
        foundation: Foundation,
        temperature: float = 0.05,
        momentum: float = 0.99,
        hidden_dim: int = 512,
        output_dim: int = 256,
        projector_layers: int = 3,
        predictor_layers: int = 2,
    ) -> None:
        super().__init__(foundation, momentum)
        check_at_least(*TEMPERATURES, temperature=temperature)
        check_at_least(1, hidden_dim=hidden_dim, output_dim=output_dim)
        check_at_least(2, projector_layers=projector_layers, predictor_layers=predictor_layers)
        self.projector = MoCoProjectionHead(self.feature_dim, hidden_dim, output_dim, projector_layers, True)
        self.predictor = MoCoProjectionHead(output_dim, hidden_dim, output_dim, predictor_layers, True)
        self.temperature = temperature

    def heads(self) -> dict[str, nn.Module]:
        """Return projector and predictor."""
        return {"projector": self.projector, "predictor": self.predictor}

    def step(self, hidden: Views) -> StepOutput:
        """Compute InfoNCE of each view's prediction against the other view's target projection."""
        assert self.target is not None
        first, second = (self.projector(self.backbone(view)) for view in hidden)
        target_first, target_second = (self.target(view) for view in hidden)
        forward = info_nce(self.predictor(first), target_second, self.temperature)
        backward = info_nce(self.predictor(second), target_first, self.temperature)
        return StepOutput(forward + backward, (first, second))


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE: each query must recognise the key at its own place among all keys of the batch.

    Plain cross-entropy over cosine similarities / temperature (LW-FedSSL algorithm 2). MoCo v3's own code
    multiplies by 2 * temperature; the paper followed here does not.

    Args:
        query: Embeddings (B, D).
        key: Embeddings (B, D); row i is the positive of query i, the other rows are its negatives.
        temperature: Divides the cosine similarities.

    Returns:
        Mean loss, a scalar.
    """
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))
