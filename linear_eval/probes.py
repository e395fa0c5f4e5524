"""Linear probes: logistic regression solved to convergence for small sets, minibatches for large ones."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from linear_eval.features import Features
from linear_eval.probe import FittedProbe, Probe, Standardizer


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
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
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
