"""Linear probe for small sets: multinomial logistic regression, solved to convergence."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

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
