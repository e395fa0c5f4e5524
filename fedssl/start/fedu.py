"""FedU: a client keeps its own predictor while its encoder is far from the global one."""

from __future__ import annotations

from fedssl.messages import Tensors
from fedssl.start.rule import PREDICTOR, StartRule, encoder_divergence, needs_predictor


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
