"""Differential privacy of whole clients."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")

from fedssl.aggregation import PrivateMean
from fedssl.aggregation.private_mean import epsilon_of, norm_of
from fedssl.participation import Participation
from fedssl.selection import SmartFreezeSelector

REFERENCE = {"a/w": torch.zeros(2), "b/w": torch.zeros(1), "b/running_var": torch.zeros(1)}
MANY = {"a/w": torch.zeros(200_000)}


def private(clip: float = 5.0, noise: float = 1e-9, clients: int = 2, noise_seed: int = 7) -> PrivateMean:
    rule = PrivateMean(clip, noise, noise_seed)
    rule.check(Participation([10] * clients), 0)
    return rule


def test_updates_are_clipped_as_one_vector_and_divided_by_the_cohort() -> None:
    rule = private(clients=4)
    rule.begin(REFERENCE)
    rule.add({"a/w": torch.tensor([6.0, 0.0]), "b/w": torch.tensor([8.0])}, 1)
    rule.add({"a/w": torch.tensor([0.0, 4.0]), "b/w": torch.tensor([0.0])}, 1000)
    given = rule.finish()
    assert torch.allclose(given["a/w"], torch.tensor([0.75, 1.0]), atol=1e-6)
    assert torch.allclose(given["b/w"], torch.tensor([1.0]), atol=1e-6)
    assert norm_of({"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}) == 5.0


def test_noise_has_its_size_and_its_seed() -> None:
    def noise(seed: int, reference: dict[str, torch.Tensor]) -> torch.Tensor:
        rule = private(clip=0.5, noise=3.0, clients=10, noise_seed=seed)
        rule.begin(reference)
        return rule.finish()["a/w"] - reference["a/w"]

    first = noise(7, MANY)
    assert first.std().item() == pytest.approx(3.0 * 0.5 / 10, rel=0.02)
    assert abs(first.mean().item()) < 0.002
    assert torch.equal(first, noise(7, MANY))
    assert not torch.equal(first, noise(8, MANY))
    assert not torch.allclose(first, noise(7, {"a/w": MANY["a/w"] + 1}), atol=1e-3)


def test_variances_stay_above_zero() -> None:
    rule = private(clip=1.0, noise=100.0)
    for value in range(8):
        rule.begin(REFERENCE | {"b/w": torch.tensor([float(value)])})
        assert rule.finish()["b/running_var"] >= 0


def test_epsilon_is_a_tight_upper_bound() -> None:
    """The exact delta of T Gaussian mechanisms is known in closed form (Balle and Wang 2018, theorem 8)."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def delta(epsilon: float, noise: float, rounds: int) -> float:
        mu = math.sqrt(rounds) / noise
        return below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)

    for noise, rounds in ((1.0, 1), (5.0, 100), (20.0, 200)):
        epsilon = epsilon_of(noise, rounds, 1e-5)
        assert delta(epsilon, noise, rounds) < 1e-5 < delta(0.85 * epsilon, noise, rounds)
    assert private().metrics(3) == {"privacy/epsilon": epsilon_of(1e-9, 3, 1e-5)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "must be above 0, got 0.0 and 1.0"),
        ({"noise_multiplier": 0.0}, "must be above 0, got 1.0 and 0.0"),
        ({"delta": 1.0}, "delta must lie between 0 and 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrivateMean(**{"clip": 1.0, "noise_multiplier": 1.0, "noise_seed": 7} | settings)


def test_runs_without_a_guarantee_are_refused() -> None:
    with pytest.raises(ValueError, match="sees no client's data, not SmartFreezeSelector"):
        PrivateMean(1.0, 1.0, 7).check(Participation([9] * 3, selector=SmartFreezeSelector()), 0)
    with pytest.raises(ValueError, match=r"delta 0\.5 must be below 1/3"):
        PrivateMean(1.0, 1.0, 7, delta=0.5).check(Participation([9] * 3), 0)
    with pytest.raises(ValueError, match="noise_seed 4 is the run's seed"):
        PrivateMean(1.0, 1.0, 4).check(Participation([9] * 3), 4)


def test_a_run_moves_by_the_clip_at_most_and_counters_stay(make_world: Callable[..., Any], tmp_path: Path) -> None:
    world = make_world(aggregation=PrivateMean(0.01, 1e-6, 7))
    before = world.weights()
    world.round()
    after = world.weights()
    moved = {key: after[key] - before[key] for key in before}
    counters = [key for key, tensor in before.items() if not tensor.is_floating_point()]
    assert counters
    assert all(torch.equal(before[key], after[key]) for key in counters)
    assert 0 < norm_of({key: tensor for key, tensor in moved.items() if key not in counters}) < 0.0101
