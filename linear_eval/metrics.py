"""Classification metrics in percent, and the perplexity of text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score
from torch import Tensor


@dataclass(frozen=True)
class ClassificationMetrics:
    """Classification metrics. Every figure but the confusion matrix is in percent, 0 to 100.

    Means over classes ("macro") run over the classes that occur in the targets: a class without test images has no
    recall, so it is left out. A prediction of such a class still counts as a mistake for the image's class.

    Args:
        accuracy: Share of images classified correctly.
        mean_per_class_accuracy: Mean over classes of the share of that class's images classified correctly.
        precision: Macro precision; a class that is never predicted has precision 0.
        recall: Macro recall, the same number as ``mean_per_class_accuracy`` under its other name.
        f1: Mean over classes of the F1 score.
        per_class_accuracy: Accuracy of each class, None for a class without test images.
        confusion: Counts of images, row = target, column = predicted.
    """

    accuracy: float
    mean_per_class_accuracy: float
    precision: float
    recall: float
    f1: float
    per_class_accuracy: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]

    def summary(self, name: str) -> dict[str, float]:
        """Return the figures that suit every classifier, with keys that begin with its name."""
        return {
            f"{name}_top1": self.accuracy,
            f"{name}_mean_per_class": self.mean_per_class_accuracy,
            f"{name}_f1": self.f1,
        }


def classification_metrics(target: Tensor, predicted: Tensor, num_classes: int) -> ClassificationMetrics:
    """Compare predicted with true classes.

    Args:
        target: True classes, integers (N,) from 0 to num_classes - 1.
        predicted: Predicted classes, same shape and range.
        num_classes: Number of classes.

    Raises:
        ValueError: Shapes differ or are empty, or a class is out of range.
    """
    if target.ndim != 1 or len(target) == 0 or target.shape != predicted.shape:
        raise ValueError(f"target and predicted must be (N,) with N >= 1, got {target.shape} and {predicted.shape}")
    for name, classes in (("target", target), ("predicted", predicted)):
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} must be within 0..{num_classes - 1}, got {low}..{high}")
    true, guess = target.cpu().numpy(), predicted.cpu().numpy()
    confusion = confusion_matrix(true, guess, labels=range(num_classes))
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, guess, labels=counts.nonzero()[0], average="macro", zero_division=0
    )
    return ClassificationMetrics(
        accuracy=100.0 * float(right.sum() / counts.sum()),
        mean_per_class_accuracy=100.0 * float(recall),
        precision=100.0 * float(precision),
        recall=100.0 * float(recall),
        f1=100.0 * float(f1),
        per_class_accuracy=tuple(100.0 * float(r / n) if n else None for r, n in zip(right, counts, strict=True)),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def macro_auroc(target: Tensor, probabilities: Tensor, classes: Tensor) -> float | None:
    """Average the areas under the ROC curves of each class against the rest, in percent; 50 is chance.

    Unlike accuracy it asks for an order of images only, and each class counts the same, however rare it is. The mean
    runs over the classes that occur in the targets.

    Args:
        target: True classes, int64 (M,).
        probabilities: Predicted probabilities, (M, K).
        classes: Class of each column, int64 (K,); a target's class without a column has area 50.

    Returns:
        ``None`` if all targets have the same class, for then nothing can be put in order.
    """
    true, found = target.cpu().numpy(), probabilities.double().cpu().numpy()
    column = {label: at for at, label in enumerate(classes.tolist())}
    present = np.unique(true)
    if len(present) < 2:
        return None
    areas = [roc_auc_score(true == c, found[:, column[c]]) if c in column else 0.5 for c in present.tolist()]
    return 100.0 * float(np.mean(areas))


@dataclass(frozen=True)
class Perplexity:
    """Negative log-likelihood of a text, summed over its characters.

    Args:
        nats: Negative log-likelihood of all predictions, in nats.
        characters: Number of predictions.
    """

    nats: float = 0.0
    characters: int = 0

    def __add__(self, nats: Tensor) -> Perplexity:
        """Add further predictions, given the negative log-likelihood (N,) of each."""
        return Perplexity(self.nats + nats.double().sum().item(), self.characters + nats.numel())

    def as_dict(self) -> dict[str, float]:
        """Return ``perplexity`` a character, the exponential of its mean entropy, and that entropy in bits."""
        mean = torch.tensor(self.nats / self.characters, dtype=torch.float64)
        return {"perplexity": mean.exp().item(), "bits_per_character": mean.item() / math.log(2)}
