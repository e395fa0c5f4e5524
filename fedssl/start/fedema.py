"""FedEMA: a client keeps the more of its own weights, the further they are from the global ones."""

from __future__ import annotations

from fedssl.messages import Tensors
from fedssl.start.rule import StartRule, encoder_divergence, mix, needs_predictor


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
