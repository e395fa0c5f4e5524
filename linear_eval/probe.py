"""Common parts of all linear probes: the fitted classifier, standardisation, the choice of the regularisation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
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
        return self.classes[self._scores(x).argmax(dim=1)].to(x.device)

    def probabilities(self, x: Tensor) -> Tensor:
        """Predict the probability of each class it has seen, (M, K), from features (M, D)."""
        return self._scores(x).softmax(dim=1)

    def _scores(self, x: Tensor) -> Tensor:
        return F.linear(self.standardize(x.to(self.weight.device)), self.weight, self.bias)


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


@dataclass(frozen=True)
class LogisticProbe(Probe):
    """Linear probe by scikit-learn's L2-regularised logistic regression on standardised features.

    C, the inverse strength, is chosen on a stratified part of the training features, then the probe is refitted with it
    on all of them. A class with one image stays out of validation. The problem is convex and the solver deterministic,
    so the seed decides the validation part only. Computed on the CPU in float64.

    Protocol as in Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    appendix A.3. Deviations: a coarser grid, and Newton's method instead of L-BFGS, which stops early on features of
    low effective rank and then understates them.

    Args:
        seed: Seed of the validation part.
    """

    candidates = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    validation_fraction = 0.2

    def fit_one(self, train: Features, strength: float) -> FittedProbe:
        """Fit with one C."""
        standardize = Standardizer.fit(train.x)
        model = LogisticRegression(C=strength, solver="newton-cg", max_iter=200)
        model.fit(standardize(train.x).cpu().numpy().astype(np.float64), train.y.cpu().numpy())
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # two classes: scikit-learn keeps one row, positive for the second class
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2  # the softmax is its sigmoid
        return FittedProbe(
            name="logistic",
            regularization=strength,
            classes=torch.from_numpy(model.classes_).to(train.y),
            standardize=standardize,
            weight=weight.to(train.x),
            bias=bias.to(train.x),
        )


@dataclass(frozen=True)
class SGDProbe(Probe):
    """Linear probe trained by SGD with momentum and a cosine schedule on whitened features.

    The weight decay (on the weights, not the biases) is chosen on a stratified part of the training features, then the
    probe is trained again with it on all of them; the last step's weights are the result, never the best. Weights start
    at zero, so the seed decides the order of images and the validation part only.

    Whitening is a linear map measured on the training features and folded into the result, so the probe stays a linear
    classifier of standardised features. Without it SGD does not converge in any reasonable time on features of low
    effective rank, which early layers and half collapsed encoders have.

    Protocol of He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, section 4.1.
    Deviations: whitening, cosine instead of steps, features computed once without augmentation, and a weight decay
    chosen rather than 0.

    Args:
        seed: Seed of the order of images and of the validation part.
        epochs: Passes over the features.
        lr: Peak learning rate.
        batch_size: Features a step.
        momentum: Momentum of SGD.
    """

    candidates = (1e-2, 1e-3, 1e-4, 0.0)
    validation_fraction = 0.1

    epochs: int = 50
    lr: float = 0.1
    batch_size: int = 256
    momentum: float = 0.9

    def fit_one(self, train: Features, strength: float) -> FittedProbe:
        """Train with one weight decay."""
        standardize = Standardizer.fit(train.x)
        classes, target = train.y.unique(return_inverse=True)
        with torch.inference_mode(False), torch.enable_grad():  # callers often have gradients switched off
            x = standardize(train.x)
            whiten = whitening_matrix(x)
            weight, bias = self._train(x @ whiten, target.clone(), len(classes), strength)
        return FittedProbe("sgd", strength, classes, standardize, weight @ whiten.T, bias)

    def _train(self, x: Tensor, target: Tensor, num_classes: int, weight_decay: float) -> tuple[Tensor, Tensor]:
        weight = torch.zeros(num_classes, x.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
        groups = [{"params": [weight], "weight_decay": weight_decay}, {"params": [bias], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        steps = self.epochs * -(-len(x) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=generator).to(x.device).split(self.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(F.linear(x[rows], weight, bias), target[rows]).backward()
                optimizer.step()
                schedule.step()
        return weight.detach(), bias.detach()


def whitening_matrix(x: Tensor) -> Tensor:
    """Compute the matrix W (D, D) for which the principal components of x @ W have variance 1.

    Directions with less than 1e-5 of the largest variance are scaled as if they had that, so noise stays small.

    Args:
        x: Features with mean 0, float32 (N, D).
    """
    # float64 because small variances matter here, in parts because a copy of all features may not fit
    parts = (part.double() for part in x.split(65_536))
    covariance = sum(part.T @ part for part in parts) / len(x)
    variance, directions = torch.linalg.eigh(covariance)
    floor = (1e-5 * variance[-1]).clamp_min(1e-12)  # variance is all zero for constant features
    return (directions / variance.clamp_min(floor).sqrt()).float()
