"""Self-supervised objectives: views of every image are compared, some with a momentum target."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from ssl_methods.losses import check_momentum
from ssl_methods.method import Foundation, Inputs, Method, StepOutput
from ssl_methods.target_network import TargetNetwork

Views = Inputs
"""Views of a batch of images, each (B, ...), ``num_views`` in all."""


class SSLMethod(Method):
    """Self-supervised objective: ignores labels and compares augmented views of every image.

    Args:
        foundation: Backbone, augmentation and optimizer.

    Attributes:
        projector: Head on the backbone, whose outputs alignment compares; without one they are the features.
    """

    num_views = 2
    views_in_paper = 2

    def __init__(self, foundation: Foundation) -> None:
        super().__init__(foundation)
        self.projector: nn.Module = nn.Identity()

    @abstractmethod
    def step(self, hidden: Views) -> StepOutput:
        """Compute the objective of all views, each (B, ...) as the prefix gives it."""

    def online(self) -> nn.Sequential:
        """Return backbone and projector as one branch."""
        return nn.Sequential(self.backbone, self.projector)


class MomentumMethod(SSLMethod):
    """Method with a target branch that follows the online branch (BYOL, MoCo v3).

    Args:
        foundation: Backbone, augmentation and optimizer.
        momentum: Momentum of the target branch, 0 to 1.
    """

    views_in_paper = 1

    def __init__(self, foundation: Foundation, momentum: float) -> None:
        super().__init__(foundation)
        self.momentum = check_momentum(momentum)
        self.target: TargetNetwork | None = None

    def attach(self, prefix: nn.Module, backbone: nn.Module) -> None:
        """Train another active part; the target is built anew and holds that part only."""
        self.target = None
        super().attach(prefix, backbone)

    def begin_client(self) -> None:
        """Make the target equal to the online branch (LW-FedSSL algorithm 2: anew in every round)."""
        if self.target is None:
            self.target = TargetNetwork(self.online())
        else:
            self.target.reset(self.online())

    def after_step(self) -> None:
        """Move the target: momentum * target + (1 - momentum) * online."""
        assert self.target is not None
        self.target.follow(self.online(), self.momentum)
