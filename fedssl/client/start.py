"""What a client starts a round from, if not simply from the global weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedssl.protocol.messages import Tensors

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


class FedU(StartRule):
    """Divergence-aware predictor update (Zhuang et al. 2021, arXiv 2108.06492).

    The encoder always starts from the global one. The predictor does if the received encoder is nearer than
    ``threshold`` to the one that the client had after its last round; otherwise the client goes on with its own.

    Deviations: the divergence is the mean L2 distance of weight tensors (the paper has the squared norm of the whole;
    the authors' code has such a mean, over convolutions, of how far the last local training went), and the target
    branch starts anew in every round, as everywhere in this library.

    Args:
        threshold: mu; 0.4 is the code's default.
    """

    def __init__(self, threshold: float = 0.4) -> None:
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        self.threshold = threshold

    def start(self, received: Tensors, own: Tensors, notes: dict[str, float]) -> Tensors:
        if encoder_divergence(received, own) < self.threshold:
            return received
        return {key: own[key] if key.startswith(PREDICTOR) else tensor for key, tensor in received.items()}

    def check(self, heads: list[str]) -> None:
        needs_predictor(self, heads)


class FedEMA(StartRule):
    """Divergence-aware dynamic moving average (Zhuang, Wen, Zhang 2022, arXiv 2204.04385).

    A client starts from mu own + (1 - mu) global, encoder and predictor alike, with mu = min(1, lambda x divergence).
    lambda is chosen for each client when the rule is first used on it, so that mu is tau then.

    Deviations: the divergence is the mean L2 distance of weight tensors between the received encoder and the client's
    last one (the authors' code measures how far the last local training went), and the target branch starts anew in
    every round.

    Args:
        tau: mu at the first use.
    """

    def __init__(self, tau: float = 0.7) -> None:
        if not 0 < tau <= 1:
            raise ValueError(f"tau must be above 0 and at most 1, got {tau}")
        self.tau = tau

    def start(self, received: Tensors, own: Tensors, notes: dict[str, float]) -> Tensors:
        divergence = encoder_divergence(received, own)
        if "lambda" not in notes and divergence > 0:
            notes["lambda"] = self.tau / divergence
        share = min(1.0, notes.get("lambda", 0.0) * divergence)
        return {key: mix(tensor, own[key], share) for key, tensor in received.items()}

    def check(self, heads: list[str]) -> None:
        needs_predictor(self, heads)
