from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from linear_eval import Features, LogisticProbe, SGDProbe
from linear_eval.probe import FittedProbe, Standardizer, stratified_split, whitening_matrix

FAST_SGD = SGDProbe(epochs=20, batch_size=32)
PROBES = [LogisticProbe(), FAST_SGD]


def clusters(images: int, spread: float, seed: int, classes: int = 3, dim: int = 8) -> Features:
    """Gaussian clusters around 4 times the first unit vectors, shifted and badly scaled."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % classes
    x = 4 * torch.eye(dim)[y] + spread * torch.randn(images, dim, generator=generator)
    return Features(x * torch.logspace(-2, 2, dim) + 10.0, y)


@pytest.mark.parametrize("probe", PROBES, ids=["logistic", "sgd"])
@pytest.mark.parametrize("classes", [2, 3])
def test_recovers_separable_clusters_without_moving_its_inputs(probe: LogisticProbe | SGDProbe, classes: int) -> None:
    train, test = clusters(120, 0.5, 0, classes), clusters(60, 0.5, 1, classes)
    before = train.x.clone(), train.y.clone()
    fitted = probe.fit(train)
    assert torch.equal(fitted.predict(test.x), test.y)
    assert torch.equal(train.x, before[0])
    assert torch.equal(train.y, before[1])
    assert fitted.weight.shape == (classes, 8)


@pytest.mark.parametrize("probe", PROBES, ids=["logistic", "sgd"])
def test_deterministic_by_seed_and_leaves_the_global_state_alone(probe: LogisticProbe | SGDProbe) -> None:
    train = clusters(90, 3.0, 0)
    state = torch.get_rng_state()
    first, second = probe.fit(train), probe.fit(train)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_changes_the_order_of_images() -> None:
    train = clusters(90, 3.0, 0)
    assert not torch.equal(FAST_SGD.fit(train).weight, replace(FAST_SGD, seed=1).fit(train).weight)


@pytest.mark.parametrize("probe", PROBES, ids=["logistic", "sgd"])
def test_classes_with_one_image_and_gaps_between_labels(probe: LogisticProbe | SGDProbe) -> None:
    train = Features(torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, 5.0], [-9.0, 3.0]]), torch.tensor([2, 2, 7, 4]))
    fitted = probe.fit(train)
    assert fitted.classes.tolist() == [2, 4, 7]
    assert set(fitted.predict(train.x).tolist()) <= {2, 4, 7}
    singletons = Features(train.x[1:], train.y[1:])
    strongest = min(probe.candidates) if isinstance(probe, LogisticProbe) else max(probe.candidates)
    assert probe.fit(singletons).regularization == strongest  # nothing to validate on


@pytest.mark.parametrize("probe", PROBES, ids=["logistic", "sgd"])
def test_refuses_one_class(probe: LogisticProbe | SGDProbe) -> None:
    with pytest.raises(ValueError, match="all 3 labels are 5"):
        probe.fit(Features(torch.zeros(3, 2), torch.full((3,), 5)))


def test_logistic_probe_agrees_with_scikit_learn() -> None:
    for classes in (2, 3):
        train, test = clusters(90, 3.0, 0, classes), clusters(200, 3.0, 1, classes)
        fitted = LogisticProbe().fit_one(train, 0.1)
        scaler = StandardScaler().fit(train.x.double().numpy())
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000)
        model.fit(scaler.transform(train.x.double().numpy()), train.y.numpy())
        expected = model.predict(scaler.transform(test.x.double().numpy()))
        assert np.mean(fitted.predict(test.x).numpy() == expected) > 0.99


def test_strong_regularisation_is_chosen_for_noise_and_weak_for_fine_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    # many useless dimensions, few images: a weak penalty overfits
    y = torch.arange(80) % 2
    noisy = torch.randn(80, 200, generator=generator)
    noisy[:, :20] += 0.7 * (2.0 * y[:, None] - 1)
    assert LogisticProbe().fit(Features(noisy, y)).regularization <= 1e-2
    # the class is in a small difference of two large, nearly equal dimensions: a strong penalty cannot see it
    y = torch.randint(0, 2, (600,), generator=generator)
    large = torch.randn(600, generator=generator)
    detail = torch.stack([large, large + 0.05 * (2.0 * y - 1)], dim=1)
    fitted = LogisticProbe().fit(Features(detail, y))
    assert fitted.regularization >= 1.0
    assert (fitted.predict(detail) == y).float().mean() > 0.95


class Scripted(LogisticProbe):
    """Fits badly below a strength of 2, and equally well from there on."""

    candidates = (1.0, 2.0, 3.0)
    tried: ClassVar[list[tuple[float, int]]] = []

    def fit_one(self, train: Features, strength: float) -> FittedProbe:
        self.tried.append((strength, len(train)))
        broken = Features(train.x, train.y.roll(1)) if strength < 2.0 else train
        return replace(super().fit_one(broken, 1.0), regularization=strength)


def test_the_choice_takes_the_best_and_of_equals_the_strongest() -> None:
    assert Scripted().fit(clusters(60, 0.5, 0)).regularization == 2.0
    assert Scripted.tried == [(1.0, 48), (2.0, 48), (3.0, 48), (2.0, 60)]  # a fifth is set aside


def test_sgd_reaches_the_logistic_probe_on_features_of_low_effective_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (800,), generator=generator)
    x = torch.randn(800, 16, generator=generator) + 2 * torch.eye(16)[y]
    x = x @ torch.randn(16, 16, generator=generator) + 30 * torch.randn(800, 1, generator=generator)
    train, test = Features(x[:400], y[:400]), Features(x[400:], y[400:])
    accuracy = [float((p.fit(train).predict(test.x) == test.y).float().mean()) for p in PROBES]
    assert accuracy[1] > accuracy[0] - 0.03


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sgd_trains_where_gradients_are_off(mode: type) -> None:
    expected = FAST_SGD.fit(clusters(60, 0.5, 0))
    with mode():
        fitted = FAST_SGD.fit(clusters(60, 0.5, 0))
    assert torch.equal(fitted.weight, expected.weight)
    assert not fitted.weight.requires_grad


def test_standardizer_leaves_constant_dimensions_alone() -> None:
    x = torch.stack([torch.tensor([1.0, 3.0, 5.0]), torch.full((3,), 0.1)], dim=1)
    standardized = Standardizer.fit(x)(x)
    assert standardized[:, 0].tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])
    assert standardized[:, 1].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)


def test_whitening_gives_unit_covariance_and_survives_constant_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    x = x - x.mean(dim=0)
    white = x @ whitening_matrix(x)
    assert torch.allclose(white.T @ white / 500, torch.eye(4), atol=1e-4)
    assert torch.isfinite(whitening_matrix(torch.zeros(5, 3))).all()


def test_stratified_split_by_class() -> None:
    y = torch.tensor([0] * 10 + [1] * 2 + [2])
    fit, validation = stratified_split(y, 0.2, seed=0)
    assert sorted(fit.tolist() + validation.tolist()) == list(range(13))
    assert y[validation].bincount(minlength=3).tolist() == [2, 1, 0]
    assert torch.equal(validation, stratified_split(y, 0.2, seed=0)[1])
    others = {tuple(stratified_split(y, 0.2, seed=seed)[1].tolist()) for seed in range(5)}
    assert len(others) > 1
