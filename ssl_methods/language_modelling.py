"""Language modelling: predict each character from those before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_methods.method import Foundation, Inputs, Method, StepOutput


class LanguageModelling(Method):
    """Language modelling by the mean cross-entropy of the next character, federated like the methods for images.

    A text of T + 1 characters gives T predictions: the first has one character of context, the last T. The head
    ``lm_head`` is trained in every stage. It has weights of its own: they are not tied to the embedding of characters,
    because a stage that freezes the embedding would change it.

    Args:
        foundation: Backbone, which maps characters (B, T) to features (B, T, feature_dim), and optimizer.
        vocabulary: Number of different characters.

    Raises:
        ValueError: There is an augmentation, or the vocabulary has fewer than two characters.
    """

    modality = "text"

    def __init__(self, foundation: Foundation, vocabulary: int = 97) -> None:
        if vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2, got {vocabulary}")
        super().__init__(foundation)
        self.lm_head = nn.Linear(self.feature_dim, vocabulary)

    def heads(self) -> dict[str, nn.Module]:
        """Return the layer that predicts characters."""
        return {"lm_head": self.lm_head}

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """Split texts (B, T + 1) into inputs (B, T) and the character after each (B, T)."""
        return images[:, :-1].contiguous(), images[:, 1:].contiguous()

    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """Return texts of the first character only."""
        return torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)

    def step(self, hidden: Inputs) -> StepOutput:
        """Return the mean cross-entropy of all predictions, in nats a character."""
        read, following = hidden
        logits = self.lm_head(self.backbone(read))
        return StepOutput(F.cross_entropy(logits.flatten(0, 1), following.flatten()), (logits,))

    def token_nll(self, encoder: nn.Module, samples: Tensor) -> Tensor:
        """Return the cross-entropy (B * T,) of every prediction of texts (B, T + 1)."""
        read, following = samples[:, :-1], samples[:, 1:]
        logits = self.lm_head(encoder(read))
        return F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")

    def check_encoder(self, spec: Any) -> None:
        """Refuse an encoder that does not read text of the same vocabulary.

        Raises:
            ValueError: The encoder reads no text, or another vocabulary.
        """
        super().check_encoder(spec)
        if spec.vocabulary != self.lm_head.out_features:
            raise ValueError(
                f"the encoder's vocabulary has {spec.vocabulary} characters, the method's {self.lm_head.out_features}: "
                "set model.method.vocabulary and model.encoder.vocabulary to the same number"
            )
