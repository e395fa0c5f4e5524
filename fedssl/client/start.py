"""Start rules: the weights from which a client begins a round, if not simply the global ones."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedssl.protocol.messages import STATE, Tensors

PREDICTOR = "head.predictor/"


class StartRule(ABC):
    """Start rule that mixes the received trained layers with those that the client had after its last round.

    It applies only where the client has trained these very layers before; otherwise the client starts from the received
    weights.
    """

    @abstractmethod
    def begin_client(self, received: Tensors, own: Tensors, notes: dict[str, float]) -> Tensors:
        """Return the weights to start from.

        Args:
            received: Global tensors of the trained layers and heads, by ``part/name``.
            own: Client's tensors after its last round, with the same names.
            notes: Numbers that the rule keeps for this client from round to round; it may change them.
        """

    def check(self, heads: list[str]) -> None:
        """Refuse a method whose heads do not suit the rule; by default none.

        Raises:
            ValueError: The rule does not suit the method.
        """


def needs_predictor(rule: StartRule, heads: list[str]) -> None:
    """Refuse methods without a predictor.

    Raises:
        ValueError: The heads include no predictor.
    """
    if PREDICTOR.strip("/") not in heads:
        raise ValueError(f"{type(rule).__name__} needs a method with a predictor, such as BYOL; the heads are {heads}")


def encoder_divergence(received: Tensors, own: Tensors) -> float:
    """Compute the mean L2 distance between the weight matrices and kernels of two encoders with projectors.

    Vectors (biases, norms) are left out; the authors' code of FedU and FedEMA takes convolutions only.
    """
    distances = [
        torch.linalg.vector_norm(tensor.float().cpu() - own[key].float().cpu())
        for key, tensor in received.items()
        if tensor.ndim > 1 and not key.startswith((PREDICTOR, STATE))
    ]
    return float(torch.stack(distances).mean()) if distances else 0.0


def mix(received: Tensor, own: Tensor, share: float) -> Tensor:
    """Interpolate: ``share`` of the client's tensor and the rest of the global one; integers stay global."""
    return torch.lerp(received, own.to(received), share) if received.is_floating_point() else received


class FedU(StartRule):
    """FedU: divergence-aware predictor update (Zhuang et al. 2021, arXiv 2108.06492).

    The encoder always starts from the global one. So does the predictor, if the received encoder is nearer than
    ``threshold`` to the client's encoder after its last round; otherwise the client keeps its own predictor.

    Deviations: the divergence is the mean L2 distance of weight tensors (the paper has the squared norm of the whole;
    the authors' code has such a mean, over convolutions, of how far the last local training went), and the target
    branch is reset in every round, as everywhere in this library.

    Args:
        threshold: mu, the largest divergence at which the global predictor is taken; 0.4 is the code's default.
    """

    def __init__(self, threshold: float = 0.4) -> None:
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        self.threshold = threshold

    def begin_client(self, received: Tensors, own: Tensors, notes: dict[str, float]) -> Tensors:
        if encoder_divergence(received, own) < self.threshold:
            return received
        return {key: own[key] if key.startswith(PREDICTOR) else tensor for key, tensor in received.items()}

    def check(self, heads: list[str]) -> None:
        needs_predictor(self, heads)


class FedEMA(StartRule):
    """FedEMA: divergence-aware dynamic moving average (Zhuang, Wen, Zhang 2022, arXiv 2204.04385).

    A client starts from mu own + (1 - mu) global, encoder and predictor alike, with mu = min(1, lambda x divergence).
    lambda is chosen for each client when the rule is first used on it, so that mu equals tau then.

    Deviations: the divergence is the mean L2 distance of weight tensors between the received encoder and the client's
    last one (the authors' code measures how far the last local training went), and the target branch is reset in every
    round.

    Args:
        tau: Value of mu at the first use.
    """

    def __init__(self, tau: float = 0.7) -> None:
        if not 0 < tau <= 1:
            raise ValueError(f"tau must be above 0 and at most 1, got {tau}")
        self.tau = tau

    def begin_client(self, received: Tensors, own: Tensors, notes: dict[str, float]) -> Tensors:
        divergence = encoder_divergence(received, own)
        if "lambda" not in notes and divergence > 0:
            notes["lambda"] = self.tau / divergence
        share = min(1.0, notes.get("lambda", 0.0) * divergence)
        return {key: mix(tensor, own[key], share) for key, tensor in received.items()}

    def check(self, heads: list[str]) -> None:
        needs_predictor(self, heads)
