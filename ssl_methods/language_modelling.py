"""Language modelling: predict each character from those before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_methods.augment import TwoViews
from ssl_methods.method import Inputs, Method, OptimizerFactory, StepOutput


class LanguageModelling(Method):
    """Language modelling by the mean cross-entropy of the next character, federated like the methods for images.

    A text of T + 1 characters gives T predictions: the first has one character of context, the last T. The head
    ``lm_head`` is trained in every stage. It has weights of its own: they are not tied to the embedding of characters,
    because a stage that freezes the embedding would change it.

    Args:
        backbone: Maps characters (B, T), or the prefix's output, to features (B, T, feature_dim).
        feature_dim: Width of the features.
        augment: Must be ``None``: text has no views.
        optimizer: Factory of the optimizer.
        vocabulary: Number of different characters.

    Raises:
        ValueError: ``augment`` is given, or the vocabulary has fewer than two characters.
    """

    modality = "text"
    views_in_paper = 1

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        augment: TwoViews | None,
        optimizer: OptimizerFactory,
        vocabulary: int = 97,
    ) -> None:
        if augment is not None:
            raise ValueError(f"augment {type(augment).__name__} makes views of images, text has none: leave it out")
        if vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2, got {vocabulary}")
        super().__init__(backbone, feature_dim, TwoViews(), optimizer)
        self.lm_head = nn.Linear(feature_dim, vocabulary)

    def heads(self) -> dict[str, nn.Module]:
        """Return the layer that predicts characters."""
        return {"lm_head": self.lm_head}

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """Split texts (B, T + 1) into inputs (B, T) and the character after each (B, T)."""
        return images[:, :-1].contiguous(), images[:, 1:].contiguous()

    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """Return texts of the first character only."""
        return torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)

    @torch.no_grad()
    def run_prefix(self, inputs: Inputs) -> Inputs:
        """Return the inputs after the prefix, and the targets."""
        read, following = inputs
        return self.prefix(read), following

    def loss_of(self, inputs: Inputs) -> Tensor:
        """Return the mean cross-entropy of all predictions, in nats a character."""
        hidden, following = self.run_prefix(inputs)
        logits = self.lm_head(self.backbone(hidden))
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        return self._with_terms((hidden,), StepOutput(loss, (logits,)))

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
