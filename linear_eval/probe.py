"""Common parts of all linear probes: the fitted classifier, standardisation, the choice of the regularisation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from linear_eval.features import Features


@dataclass(frozen=True)
class Standardizer:
    """Shift and scale that give each feature dimension mean 0 and deviation 1 on the training features.

    Args:
        mean: (D,), float32.
        scale: (D,), float32; 1 where a dimension is constant up to rounding, so that noise is not amplified.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> "Standardizer":
        """Measure mean and scale of features (N, D)."""
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        constant = std <= 1e-6 * mean.abs()
        return cls(mean.float(), std.masked_fill(constant, 1.0).float())

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise features (M, D)."""
        return (x - self.mean) / self.scale


@dataclass(frozen=True)
class FittedProbe:
    """Fitted linear classifier on standardised features. It predicts only classes it has seen.

    Args:
        name: Name of the probe, "logistic" or "sgd".
        regularization: Chosen strength: C of a logistic probe (larger is weaker), weight decay of an SGD probe.
        classes: Classes of the training set in rising order, int64 (K,).
        standardize: Standardisation applied before the classifier.
        weight: Weights of the classifier, float32 (K, D).
        bias: Biases of the classifier, float32 (K,).
    """

    name: str
    regularization: float
    classes: Tensor
    standardize: Standardizer
    weight: Tensor
    bias: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Predict classes, int64 (M,), of features (M, D), on the device of ``x``."""
        scores = F.linear(self.standardize(x.to(self.weight.device)), self.weight, self.bias)
        return self.classes[scores.argmax(dim=1)].to(x.device)


@dataclass(frozen=True)
class Probe(ABC):
    """Base of linear probes: learn a linear classifier from labelled features; test features never reach it.

    Args:
        seed: Seed of the part set aside to choose the regularisation, and of the training if that is random.

    Attributes:
        candidates: Candidate strengths of the regularisation, from the strongest to the weakest.
        validation_fraction: Share of the training features used to choose among them.
    """

    candidates: ClassVar[tuple[float, ...]]
    validation_fraction: ClassVar[float]

    seed: int = 0

    def fit(self, train: Features) -> FittedProbe:
        """Choose the regularisation and fit on all of ``train``, which stays as it is; the result lies on its device.

        Raises:
            ValueError: The training set has one class.
        """
        if bool((train.y == train.y[0]).all()):
            raise ValueError(
                f"a probe needs at least 2 classes to tell apart, all {len(train)} labels are {int(train.y[0])}"
            )
        return self.fit_one(train, self._choose(train))

    @abstractmethod
    def fit_one(self, train: Features, strength: float) -> FittedProbe:
        """Fit with one strength of the regularisation."""

    def _choose(self, train: Features) -> float:
        """Choose the candidate with the best accuracy on a stratified part of the training features.

        Of equally good ones the strongest wins; it is also taken when nothing can be set aside because each class has
        one image.
        """
        fit_rows, validation_rows = stratified_split(train.y, self.validation_fraction, self.seed)
        if len(validation_rows) == 0:
            return self.candidates[0]
        part, held_out = train.select(fit_rows), train.select(validation_rows)
        return max(  # of equal ones, max takes the first
            self.candidates,
            key=lambda strength: int((self.fit_one(part, strength).predict(held_out.x) == held_out.y).sum()),
        )


def stratified_split(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions into a part to fit and a part to validate, class by class.

    A class gives ``fraction`` of its images (rounded, at least one) to validation but always keeps one to fit; a class
    with one image therefore has none in validation.

    Args:
        y: Class labels, int64 (N,).
        fraction: Share of the images to validate on.
        seed: Seed of the split.

    Returns:
        Positions to fit and positions to validate, both int64, rising, on the device of ``y``. The second is empty
        where every class has one image.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = y.cpu()
    validation = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        validation[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~validation).nonzero()[:, 0].to(y.device), validation.nonzero()[:, 0].to(y.device)
