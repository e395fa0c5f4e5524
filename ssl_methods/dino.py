"""DINO: a target branch's sharpened and centred distribution over prototypes is what the online branch predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_methods.augment import TwoViews
from ssl_methods.method import Foundation, Inputs, StepOutput
from ssl_methods.setting_checks import TEMPERATURES, check_at_least, check_bounded
from ssl_methods.ssl_method import MomentumMethod, Views


class DINO(MomentumMethod):
    """DINO (Caron et al. 2021, arXiv 2104.14294, section 3.1 and algorithm 1).

    The centre of the target's outputs (equation 4) is state that travels: clients move it after every step, and the
    server averages it. Our reading: momentum and temperatures are constant, the last layer is never frozen, and the
    target starts as a copy of the online branch in every round. Local crops have as many pixels as global ones, since
    the encoder has one input size, so they cost as much (the paper's have 96 pixels instead of 224). The paper's 65536
    prototypes are far more than a small device holds.

    Args:
        foundation: Backbone, augmentation and optimizer.
        momentum: Momentum of the target branch.
        temperature: tau_s, temperature of the online branch.
        target_temperature: tau_t, temperature of the target branch.
        centre_momentum: m in equation 4.
        hidden_dim: Width of the projector's hidden layers.
        bottleneck_dim: Width in front of the prototypes.
        output_dim: Number of prototypes, the width of the projections.
        local_crops: Further views that the online branch alone sees.
        local_scale: Smallest and largest share of the area in these.

    Raises:
        ValueError: A setting is out of its range, or local crops are wanted and the augmentation makes none.
    """

    def __init__(
        self,
        foundation: Foundation,
        *,
        momentum: float = 0.996,
        temperature: float = 0.1,
        target_temperature: float = 0.04,
        centre_momentum: float = 0.9,
        hidden_dim: int = 512,
        bottleneck_dim: int = 256,
        output_dim: int = 1024,
        local_crops: int = 0,
        local_scale: tuple[float, float] = (0.05, 0.4),
    ) -> None:
        super().__init__(foundation, momentum)
        check_at_least(*TEMPERATURES, temperature=temperature, target_temperature=target_temperature)
        check_bounded("centre_momentum", centre_momentum)
        check_at_least(1, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, output_dim=output_dim)
        check_at_least(0, local_crops=local_crops)
        self.projector = PrototypeHead(self.feature_dim, hidden_dim, bottleneck_dim, output_dim)
        self.centre = Centre(output_dim, centre_momentum)
        self.temperatures = temperature, target_temperature
        self.num_views = 2 + local_crops
        self.local_augment = local_views(foundation.augment, local_scale) if local_crops else None

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector, prototypes included."""
        return {"projector": self.projector}

    def state_parts(self) -> dict[str, nn.Module]:
        """Return the centre of the target's outputs, which the federation shares."""
        return {"centre": self.centre}

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """Draw two global views, then local crops."""
        assert self.augment is not None
        views = self.augment(images, self.generator)
        if self.local_augment is None:
            return views
        return (*views, *(self.local_augment.first(images, self.generator) for _ in range(self.num_views - 2)))

    def step(self, hidden: Views) -> StepOutput:
        """Compute the cross-entropy of every view's distribution against those of the other global views."""
        assert self.target is not None
        outputs = tuple(self.projector(self.backbone(view)) for view in hidden)
        targets = torch.stack([self.target(view) for view in hidden[:2]])
        self._batch_centre = targets.mean(dim=(0, 1))
        return StepOutput(cross_view_entropy(outputs, self.centre(targets), *self.temperatures), outputs)

    def after_step(self) -> None:
        """Move target and centre."""
        super().after_step()
        self.centre.follow(self._batch_centre)


class PrototypeHead(nn.Module):
    """Projector of DINO (section 3.1): three layers, then cosines to prototypes.

    The original's last layer is a weight-normalised one whose norms are fixed at 1; these are its values without them.
    """

    def __init__(self, input_dim: int, hidden_dim: int, bottleneck_dim: int, output_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(input_dim, hidden_dim), nn.GELU()),
            *(nn.Linear(hidden_dim, hidden_dim), nn.GELU()),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.prototypes = nn.Linear(bottleneck_dim, output_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to cosines (B, K)."""
        return F.linear(F.normalize(self.layers(features), dim=-1), F.normalize(self.prototypes.weight, dim=-1))


class Centre(nn.Module):
    """Running mean of the target's outputs, which keeps one prototype from taking all images (equation 4)."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, outputs: Tensor) -> Tensor:
        """Subtract the mean from outputs (..., K)."""
        return outputs - self.mean

    @torch.no_grad()
    def follow(self, batch_mean: Tensor) -> None:
        """Move the mean: momentum * mean + (1 - momentum) * mean of a batch's outputs (K,)."""
        self.mean.mul_(self.momentum).add_(batch_mean.to(self.mean), alpha=1 - self.momentum)


def cross_view_entropy(
    online: Sequence[Tensor], target: Sequence[Tensor] | Tensor, temperature: float, target_temperature: float
) -> Tensor:
    """Compute DINO's loss (equation 3): the mean cross-entropy over all pairs of different views.

    Args:
        online: Outputs (B, K) of the online branch; the first ones are of the target's views.
        target: Centred outputs (B, K) of the target branch, without gradient.
        temperature: Divides the online outputs.
        target_temperature: Divides the target's outputs.

    Returns:
        Scalar, mean over pairs and images.
    """
    predicted = [F.log_softmax(outputs / temperature, dim=-1) for outputs in online]
    wanted = [F.softmax(outputs / target_temperature, dim=-1) for outputs in target]
    pairs = [(p, q) for place, p in enumerate(wanted) for view, q in enumerate(predicted) if view != place]
    return -torch.stack([(p * q).sum(dim=-1).mean() for p, q in pairs]).mean()


def local_views(augment: object, scale: tuple[float, float]) -> TwoViews:
    """Return the same augmentation with smaller crops.

    Raises:
        ValueError: It makes no crops, or the scale is no range.
    """
    if not isinstance(augment, TwoViews) or augment.crop_scale is None:
        raise ValueError(
            f"local_crops need an augmentation that crops, such as NaturalViews, got {type(augment).__name__}: "
            "set augment.crop_scale, or local_crops to 0"
        )
    return replace(augment, crop_scale=scale)
