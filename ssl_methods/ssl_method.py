"""Self-supervised objectives: views of every image are compared, some with a momentum target."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from ssl_methods.method import Foundation, Inputs, Method, StepOutput
from ssl_methods.setting_checks import check_bounded

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


class TargetNetwork(nn.Module):
    """Copy of a network that never receives gradients.

    It stays in training mode, so its batch norms use the batch's own statistics like the online branch, as in MoCo v3
    and BYOL. Its running statistics are its own and never travel.

    Args:
        branch: Network to copy.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(branch).requires_grad_(False)
        self.copy.train()

    @torch.no_grad()
    def reset(self, branch: nn.Module) -> None:
        """Make the copy equal to ``branch``, parameters and buffers."""
        for mine, theirs in zip(tensors_of(self.copy), tensors_of(branch), strict=True):
            mine.copy_(theirs)

    def follow(self, branch: nn.Module, momentum: float) -> None:
        """Move the parameters: copy = momentum * copy + (1 - momentum) * branch."""
        update_momentum(branch, self.copy, m=momentum)

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        """Return the copy's output, outside of autograd."""
        return self.copy(hidden)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


class MomentumMethod(SSLMethod):
    """Method with a target branch that follows the online branch (BYOL, MoCo v3).

    Args:
        foundation: Backbone, augmentation and optimizer.
        momentum: Momentum of the target branch, 0 to 1.

    Raises:
        ValueError: The momentum lies outside.
    """

    views_in_paper = 1

    def __init__(self, foundation: Foundation, momentum: float) -> None:
        check_bounded("momentum", momentum)
        super().__init__(foundation)
        self.momentum = momentum
        self.target: TargetNetwork | None = None

    def attach(self, prefix: nn.Module, backbone: nn.Module) -> None:
        """Train another active part; the target is built anew and holds that part only."""
        # Forgotten first: attaching starts a client, and that builds a target of the new part.
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
