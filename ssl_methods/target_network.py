"""Target network, a frozen copy of a branch: the momentum target, or the received model in an alignment loss."""

from __future__ import annotations

import copy

import torch
from lightly.models.utils import update_momentum
from torch import Tensor, nn


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
        for mine, theirs in zip(self._tensors(self.copy), self._tensors(branch), strict=True):
            mine.copy_(theirs)

    def follow(self, branch: nn.Module, momentum: float) -> None:
        """Move the parameters: copy = momentum * copy + (1 - momentum) * branch."""
        update_momentum(branch, self.copy, m=momentum)

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> Tensor:
        """Return the copy's output, outside of autograd."""
        return self.copy(hidden)

    @staticmethod
    def _tensors(module: nn.Module) -> list[Tensor]:
        return [*module.parameters(), *module.buffers()]
