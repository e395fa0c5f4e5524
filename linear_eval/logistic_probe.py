"""Linear probe for small sets: multinomial logistic regression, solved to convergence."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from linear_eval.features import Features
from linear_eval.probe import FittedProbe, Standardizer, check_classes, choose_regularization


@dataclass(frozen=True)
class LogisticProbe:
    """Linear probe by scikit-learn's L2-regularised logistic regression on standardised features.

    C, the inverse strength, is chosen on a stratified part of the training features, then the probe is refitted with it
    on all of them. A class with one image stays out of validation. The problem is convex and the solver deterministic,
    so the seed decides the validation part only. Computed on the CPU in float64.

    Protocol as in Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    appendix A.3. Deviations: a coarser grid, and Newton's method instead of L-BFGS, which stops early on features of
    low effective rank and then understates them.

    Args:
        candidates: Candidate values of C.
        validation_fraction: Share of the training features used to choose C.
        seed: Seed of the validation part.

    Raises:
        ValueError: From ``fit``: the training set has one class.
    """

    candidates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    validation_fraction: float = 0.2
    seed: int = 0

    def fit(self, train: Features) -> FittedProbe:
        """Choose C and fit on all of ``train``; the result lies on its device."""
        check_classes(train)
        strongest_first = sorted(self.candidates)
        c = choose_regularization(train, strongest_first, self._fit, self.validation_fraction, self.seed)
        return self._fit(train, c)

    def _fit(self, train: Features, c: float) -> FittedProbe:
        standardize = Standardizer.fit(train.x)
        model = LogisticRegression(C=c, solver="newton-cg", max_iter=200)
        model.fit(standardize(train.x).cpu().numpy().astype(np.float64), train.y.cpu().numpy())
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # two classes: scikit-learn keeps one row, positive for the second class
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        return FittedProbe(
            name="logistic",
            regularization=c,
            classes=torch.from_numpy(model.classes_).to(train.y),
            standardize=standardize,
            weight=weight.to(train.x),
            bias=bias.to(train.x),
        )
