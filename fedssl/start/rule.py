"""What a client starts a round from, if not simply from the global weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedssl.messages import Tensors

PREDICTOR = "head.predictor/"


class StartRule(ABC):
    """Mixes the received trained layers with those that the client had after its last round.

    It is asked only where the client has trained these very layers before; otherwise it starts from what it received.
    """

    @abstractmethod
    def start(self, received: Tensors, own: Tensors, notes: dict[str, float]) -> Tensors:
        """The weights to start from.

        Args:
            received: Global tensors of the trained layers and heads, by ``part/name``.
            own: The client's after its last round, with the same names.
            notes: Numbers that the rule keeps for this client from round to round; it may change them.
        """

    def check(self, heads: list[str]) -> None:
        """Whether the rule suits the method with these heads; by default any.

        Raises:
            ValueError: It does not.
        """


def needs_predictor(rule: StartRule, heads: list[str]) -> None:
    """Refuses methods without a predictor.

    Raises:
        ValueError: There is none among the heads.
    """
    if PREDICTOR.strip("/") not in heads:
        raise ValueError(f"{type(rule).__name__} needs a method with a predictor, such as BYOL; the heads are {heads}")


def encoder_divergence(received: Tensors, own: Tensors) -> float:
    """Mean over the encoder's and projector's weight matrices and kernels of the L2 distance between both.

    Vectors (biases, norms) are left out; the authors' code of FedU and FedEMA takes convolutions only.
    """
    distances = [
        torch.linalg.vector_norm(tensor.float().cpu() - own[key].float().cpu())
        for key, tensor in received.items()
        if tensor.ndim > 1 and not key.startswith(PREDICTOR)
    ]
    return float(torch.stack(distances).mean()) if distances else 0.0


def mix(received: Tensor, own: Tensor, share: float) -> Tensor:
    """``share`` of the client's tensor and the rest of the global one; integers stay global."""
    return torch.lerp(received, own.to(received), share) if received.is_floating_point() else received
