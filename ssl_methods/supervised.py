"""Supervised classification, federated like the self-supervised methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_methods.method import Foundation, Inputs, Method, StepOutput


class Supervised(Method):
    """Supervised classification by the cross-entropy of a linear classifier (the training of SmartFreeze and ProgFed).

    Training uses one view of every image, the first of the two that the augmentation defines.

    Args:
        foundation: Backbone, augmentation and optimizer.
        num_classes: Number of classes.
        label_smoothing: Label smoothing of the targets, at least 0 and below 1.
    """

    def __init__(self, foundation: Foundation, num_classes: int = 10, label_smoothing: float = 0.0) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        super().__init__(foundation)
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        self.label_smoothing = label_smoothing

    def heads(self) -> dict[str, nn.Module]:
        """Return the classifier."""
        return {"classifier": self.classifier}

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """Return one view (B, C, H, W) and the labels (B,)."""
        return (*super().inputs(images, labels), labels)

    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """Return a view without meaningful values, and labels of the first class."""
        return (*super().example_inputs(shape), torch.zeros(shape[0], dtype=torch.long))

    def step(self, hidden: Inputs) -> StepOutput:
        """Return the mean cross-entropy."""
        view, labels = hidden
        logits = self.classifier(self.backbone(view))
        return StepOutput(F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), (logits,))

    def classify(self, features: Tensor) -> Tensor:
        """Return the classifier's scores."""
        return self.classifier(features)

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels that are missing or not below ``num_classes``.

        Raises:
            ValueError: An image has no label, or one of ``num_classes`` or above.
        """
        if len(labels) and int(labels.min()) < 0:
            raise ValueError("supervised training needs a label for every image; this data set has unlabelled ones")
        if len(labels) and int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"the images have labels up to {int(labels.max())}: set model.method.num_classes to at least "
                f"{int(labels.max()) + 1}, it is {self.num_classes}"
            )
