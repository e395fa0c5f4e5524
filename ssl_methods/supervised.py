"""Plain supervised classification, in the same federation as the self-supervised methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_methods.augment import TwoViews
from ssl_methods.method import Inputs, Method, OptimizerFactory, StepOutput


class Supervised(Method):
    """Cross-entropy of a linear classifier on the features (SmartFreeze and ProgFed train so).

    One view of every image is trained on, the first of the two that the augmentation defines.

    Args:
        backbone: Maps the input to features (B, feature_dim).
        feature_dim: Width of the features.
        augment: Makes the view.
        optimizer: Makes the optimizer.
        num_classes: Classes to tell apart.
        label_smoothing: Of the targets, at least 0 and below 1.
    """

    views_in_paper = 1

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        augment: TwoViews,
        optimizer: OptimizerFactory,
        num_classes: int = 10,
        label_smoothing: float = 0.0,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        super().__init__(backbone, feature_dim, augment, optimizer)
        self.num_classes = num_classes
        self.classifier = nn.Linear(feature_dim, num_classes)
        self.label_smoothing = label_smoothing

    def heads(self) -> dict[str, nn.Module]:
        """The classifier."""
        return {"classifier": self.classifier}

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """One view (B, C, H, W) and the labels (B,)."""
        return self.augment.first(images, self.generator), labels

    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """A view without meaningful values, and labels of the first class."""
        return torch.empty(shape), torch.zeros(shape[0], dtype=torch.long)

    @torch.no_grad()
    def hidden(self, inputs: Inputs) -> Inputs:
        """The view after the prefix, and the labels."""
        view, labels = inputs
        return self.prefix(view), labels

    def loss_of(self, inputs: Inputs) -> Tensor:
        """Mean cross-entropy."""
        hidden, labels = self.hidden(inputs)
        logits = self.classifier(self.backbone(hidden))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return self._with_terms((hidden,), StepOutput(loss, (logits,)))

    def classify(self, features: Tensor) -> Tensor:
        """The classifier's scores."""
        return self.classifier(features)

    def check_labels(self, labels: Tensor) -> None:
        """Every image needs a label below ``num_classes``.

        Raises:
            ValueError: One has none, or a larger one.
        """
        if len(labels) and int(labels.min()) < 0:
            raise ValueError("supervised training needs a label for every image; this data set has unlabelled ones")
        if len(labels) and int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"the images have labels up to {int(labels.max())}: set model.method.num_classes to at least "
                f"{int(labels.max()) + 1}, it is {self.num_classes}"
            )
