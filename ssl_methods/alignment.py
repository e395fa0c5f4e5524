"""Losses that keep local training near the received global model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_methods.method import Inputs, Method, StepOutput
from ssl_methods.moco_v3 import info_nce
from ssl_methods.setting_checks import TEMPERATURES, check_at_least
from ssl_methods.ssl_method import SSLMethod, TargetNetwork, Views, tensors_of

AlignmentState = list[Tensor]
LARGEST_WEIGHT = 1e6


class Alignment(ABC):
    """Representation alignment: a loss between local and global projections of the same images.

    It sees the prefix's outputs, so it costs one more forward pass of the active part only; the frozen prefix
    is not run again, and the copies hold active layers only.

    Args:
        weight: alpha in ``total = ssl loss + alpha * alignment loss``.
        temperature: Divides the cosine similarities.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 0.2) -> None:
        check_at_least(0, LARGEST_WEIGHT, **{"alignment.weight": weight})
        check_at_least(*TEMPERATURES, **{"alignment.temperature": temperature})
        self.weight = weight
        self.temperature = temperature
        self._received: TargetNetwork | None = None

    def begin_stage(self, method: SSLMethod) -> None:
        """Start a stage: make copies that fit its active part."""
        self._received = TargetNetwork(method.online())

    def begin_client(self, method: SSLMethod, state: AlignmentState | None) -> None:
        """Start a client's round: copy the received weights and those that it remembers."""
        assert self._received is not None
        self._received.reset(method.online())

    def copies(self) -> list[Tensor]:
        """Return the tensors of the copies."""
        return tensors_of(self._received.copy) if self._received else []

    def remember(self, method: SSLMethod) -> AlignmentState | None:
        """Return the tensors that the client keeps until its next round; ``None`` if there are none."""
        return None

    def __call__(self, hidden: Views, output: StepOutput) -> Tensor:
        """Compute the weighted loss, the mean over all views."""
        losses = [self.loss(view, local) for view, local in zip(hidden, output.projections, strict=True)]
        return self.weight * torch.stack(losses).mean()

    @abstractmethod
    def loss(self, hidden: Tensor, local: Tensor) -> Tensor:
        """Compute the loss of one view from the prefix's output and the local projections (B, D)."""


class GlobalAlignment(Alignment):
    """In-batch InfoNCE against the received global model (our reading of LW-FedSSL v3).

    Positive: the global model's projection of the same view; negatives: those of the batch's other images.
    """

    def loss(self, hidden: Tensor, local: Tensor) -> Tensor:
        assert self._received is not None
        return info_nce(local, self._received(hidden), self.temperature)


class MoonAlignment(Alignment):
    """MOON (Li, He, Song 2021, arXiv 2103.16257): towards the global, away from the previous local model.

    A client has no previous model of the current active layers in its first round of a stage; the loss is
    zero then (our reading for layer-wise training).
    """

    def __init__(self, weight: float = 1.0, temperature: float = 0.5) -> None:
        super().__init__(weight, temperature)
        self._previous: TargetNetwork | None = None
        self._has_previous = False

    def begin_stage(self, method: SSLMethod) -> None:
        super().begin_stage(method)
        self._previous = TargetNetwork(method.online())

    def begin_client(self, method: SSLMethod, state: AlignmentState | None) -> None:
        super().begin_client(method, state)
        assert self._previous is not None
        self._has_previous = state is not None
        for own, remembered in zip(tensors_of(self._previous.copy), state or [], strict=state is not None):
            own.copy_(remembered, non_blocking=True)

    def copies(self) -> list[Tensor]:
        return super().copies() + (tensors_of(self._previous.copy) if self._previous else [])

    def remember(self, method: SSLMethod) -> AlignmentState:
        # On the CPU: a run keeps as many of these as it has clients.
        return [tensor.detach().cpu().clone() for tensor in tensors_of(method.online())]

    def loss(self, hidden: Tensor, local: Tensor) -> Tensor:
        if not self._has_previous:
            return local.new_zeros(())
        assert self._received is not None
        assert self._previous is not None
        towards = F.cosine_similarity(local, self._received(hidden))
        away = F.cosine_similarity(local, self._previous(hidden))
        logits = torch.stack([towards, away], dim=1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(local), dtype=torch.long, device=local.device))


class ProximalTerm:
    """FedProx (Li et al. 2020, arXiv 1812.06127): mu / 2 * squared distance to the received parameters."""

    def __init__(self, method: Method, mu: float) -> None:
        self._mu = mu
        self._parameters = method.trained()
        self.received = [parameter.detach().clone() for parameter in self._parameters]

    def __call__(self, hidden: Inputs, output: StepOutput) -> Tensor:
        pairs = zip(self._parameters, self.received, strict=True)
        return self._mu / 2 * torch.stack([(now - then).square().sum() for now, then in pairs]).sum()
