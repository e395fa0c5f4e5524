"""How well a language model predicts held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Perplexity:
    """Likelihood of a text, summed over its characters.

    Attributes:
        nats: Negative log-likelihood of all predictions.
        characters: Number of predictions.
    """

    nats: float = 0.0
    characters: int = 0

    def __add__(self, nats: Tensor) -> Perplexity:
        """With further predictions, the negative log-likelihood (N,) of each."""
        return Perplexity(self.nats + nats.double().sum().item(), self.characters + nats.numel())

    def as_dict(self) -> dict[str, float]:
        """``perplexity`` a character, the exponential of its mean entropy, and that entropy in bits."""
        mean = torch.tensor(self.nats / self.characters, dtype=torch.float64)
        return {"perplexity": mean.exp().item(), "bits_per_character": mean.item() / math.log(2)}
