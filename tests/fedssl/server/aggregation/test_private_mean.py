"""Differential privacy of whole clients."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")

from updates import update_of

from fedssl.server.aggregation import PrivateMean
from fedssl.server.aggregation.private_mean import epsilon_of, norm_of
from fedssl.server.participation import Participation
from fedssl.server.selection import SmartFreezeSelector

REFERENCE = {"a/w": torch.zeros(2), "b/w": torch.zeros(1), "b/running_var": torch.zeros(1)}
MANY = {"a/w": torch.zeros(200_000)}


def private(clip: float = 5.0, noise: float = 1e-9, clients: int = 2, key: int = 7) -> PrivateMean:
    rule = PrivateMean(clip, noise, max_epsilon=math.inf)
    rule.begin(Participation([10] * clients), 3)
    rule.load_state_dict({"key": f"{key:064x}"})
    return rule


def test_updates_are_clipped_as_one_vector_and_divided_by_the_cohort() -> None:
    rule = private(clients=4)
    rule.begin_round(REFERENCE)
    rule.add(update_of({"a/w": torch.tensor([6.0, 0.0]), "b/w": torch.tensor([8.0])}, 1))
    rule.add(update_of({"a/w": torch.tensor([0.0, 4.0]), "b/w": torch.tensor([0.0])}, 1000))
    given = rule.finish()
    assert torch.allclose(given["a/w"], torch.tensor([0.75, 1.0]), atol=1e-6)
    assert torch.allclose(given["b/w"], torch.tensor([1.0]), atol=1e-6)
    assert norm_of({"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}) == 5.0


def noise(key: int = 7, reference: float = 0.0, given: float = 0.0) -> torch.Tensor:
    """The noise of a round in which one client gave an update of a few entries; its standard deviation is 0.15."""
    rule = private(clip=0.5, noise=3.0, clients=10, key=key)
    before = {"a/w": MANY["a/w"] + reference}
    update = torch.zeros(200_000)
    update[:4] = given
    rule.begin_round(before)
    rule.add(update_of({"a/w": before["a/w"] + update}, 1))
    return rule.finish()["a/w"] - before["a/w"]


def test_noise_has_its_size_and_its_key() -> None:
    first = noise()
    assert first.std().item() == pytest.approx(3.0 * 0.5 / 10, rel=0.02)
    assert abs(first.mean().item()) < 0.002
    assert torch.equal(first, noise())
    assert not torch.equal(first, noise(key=8))
    assert not torch.allclose(first, noise(reference=1.0), atol=1e-3)


def test_noise_is_normal() -> None:
    drawn = noise().double() / 0.15
    for bound, share in ((-2.0, 0.02275), (-1.0, 0.15866), (0.0, 0.5), (1.5, 0.93319)):
        assert (drawn < bound).double().mean().item() == pytest.approx(share, abs=0.004)
    assert len(drawn.unique()) > 0.99 * len(drawn)


def test_one_key_never_gives_two_sums_the_same_noise() -> None:
    """Two runs of one key that differ in a learning rate, or a round repeated with other clients."""
    difference = noise(given=0.1) - noise(given=0.1001)
    assert difference.std().item() == pytest.approx(math.sqrt(2) * 0.15, rel=0.02)


def test_every_process_draws_a_key_of_its_own_and_a_resumed_run_goes_on_with_it() -> None:
    first, second = PrivateMean(1.0, 1.0), PrivateMean(1.0, 1.0)
    assert first.state_dict() != second.state_dict()
    second.load_state_dict(first.state_dict())
    for rule in (first, second):
        rule.begin_round(REFERENCE)
    assert torch.equal(first.finish()["a/w"], second.finish()["a/w"])


def test_variances_stay_above_zero() -> None:
    rule = private(clip=1.0, noise=100.0)
    for value in range(8):
        rule.begin_round(REFERENCE | {"b/w": torch.tensor([float(value)])})
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
        ({"max_epsilon": 0.0}, "max_epsilon must be above 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrivateMean(**{"clip": 1.0, "noise_multiplier": 1.0} | settings)


def test_runs_without_a_guarantee_are_refused() -> None:
    with pytest.raises(ValueError, match="sees no client's data, not SmartFreezeSelector"):
        PrivateMean(1.0, 1.0).begin(Participation([9] * 3, selector=SmartFreezeSelector()), 1)
    with pytest.raises(ValueError, match=r"delta 0\.5 must be below 1/3"):
        PrivateMean(1.0, 1.0, delta=0.5).begin(Participation([9] * 3), 1)
    with pytest.raises(ValueError, match=r"epsilon 5\.5e\+17 after 1 rounds, above 20: raise it"):
        PrivateMean(1.0, 1e-9, max_epsilon=20.0).begin(Participation([9] * 3), 1)
    PrivateMean(1.0, 1e-9, max_epsilon=math.inf).begin(Participation([9] * 3), 1)


def test_a_run_moves_by_the_clip_at_most_and_counters_stay(make_world: Callable[..., Any], tmp_path: Path) -> None:
    world = make_world(aggregation=PrivateMean(0.01, 1e-6, max_epsilon=math.inf))
    before = world.weights()
    world.round()
    after = world.weights()
    moved = {key: after[key] - before[key] for key in before}
    counters = [key for key, tensor in before.items() if not tensor.is_floating_point()]
    assert counters
    assert all(torch.equal(before[key], after[key]) for key in counters)
    assert 0 < norm_of({key: tensor for key, tensor in moved.items() if key not in counters}) < 0.0101
