"""What self-supervised objectives share: two views, one pass of the frozen layers a view, momentum targets."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ssl_methods.augment import TwoViews
from ssl_methods.losses import check_momentum
from ssl_methods.method import Inputs, Method, OptimizerFactory, StepOutput
from ssl_methods.target_network import TargetNetwork

Views = tuple[Tensor, Tensor]


class SSLMethod(Method):
    """A self-supervised objective: labels are ignored, two augmented views of every image are compared.

    Args:
        backbone: Maps images, or the prefix's output, to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes two views of a batch of images.
        optimizer: Makes an optimizer for a list of parameters.

    Attributes:
        views_in_paper: As LW-FedSSL counts: two, but one with a target branch.
    """

    projector: nn.Module
    views_in_paper = 2

    @abstractmethod
    def step(self, hidden: Views) -> StepOutput:
        """The objective.

        Args:
            hidden: Both views after the prefix, each (B, ...).
        """

    def online(self) -> nn.Sequential:
        """Backbone and projector as one branch."""
        return nn.Sequential(self.backbone, self.projector)

    def inputs(self, images: Tensor, labels: Tensor) -> Views:
        """Two views (B, C, H, W)."""
        return self.augment(images, self.generator)

    def example_inputs(self, shape: tuple[int, ...]) -> Views:
        """Two views without meaningful values."""
        return torch.empty(shape), torch.empty(shape)

    @torch.no_grad()
    def run_prefix(self, inputs: Inputs) -> Views:
        """Both views after the prefix."""
        first, second = inputs
        return self.prefix(first), self.prefix(second)

    def loss_of(self, inputs: Inputs) -> Tensor:
        """Loss of two views; prefix outputs are computed once for all branches and further loss terms."""
        hidden = self.run_prefix(inputs)
        return self._with_terms(hidden, self.step(hidden))


class MomentumMethod(SSLMethod):
    """A method with a target branch that follows the online branch (BYOL, MoCo v3).

    Args:
        backbone: Maps the input to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes the two views.
        optimizer: Makes the optimizer.
        momentum: Of the target branch, 0 to 1.
    """

    views_in_paper = 1

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        augment: TwoViews,
        optimizer: OptimizerFactory,
        momentum: float,
    ) -> None:
        super().__init__(backbone, feature_dim, augment, optimizer)
        self.momentum = check_momentum(momentum)
        self.target: TargetNetwork | None = None

    def attach(self, prefix: nn.Module, backbone: nn.Module) -> None:
        """As in the base class; the target is built anew for the new active part only."""
        self.target = None
        super().attach(prefix, backbone)

    def start(self) -> None:
        """Target := online (LW-FedSSL algorithm 2: anew in every round)."""
        if self.target is None:
            self.target = TargetNetwork(self.online())
        else:
            self.target.reset(self.online())

    def after_step(self) -> None:
        """Target := momentum * target + (1 - momentum) * online."""
        assert self.target is not None
        self.target.follow(self.online(), self.momentum)
