"""FedHybrid's selector and its bandit."""

import math

import numpy as np
import pytest

from fedssl.server.selection import Candidate, FedHybridSelector, Outcome
from fedssl.server.selection.fedhybrid import (
    best_pool,
    compute_utility,
    confidence_bonus,
    draw_by_weight,
    exploration_share,
    memory_utility,
    normalised_rewards,
)

NAN = float("nan")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fleet(number: int) -> list[Candidate]:
    return [Candidate(i, 10) for i in range(number)]


@pytest.fixture
def constant(monkeypatch: pytest.MonkeyPatch):
    """Sets constants of the exploration."""

    def change(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setattr(f"fedssl.server.selection.fedhybrid.{name}", value)

    return change


@pytest.fixture
def greedy(constant) -> FedHybridSelector:
    """A selector that never explores what it need not, and takes only the best."""
    constant(EXPLORATION=0.0, EXPLORATION_FLOOR=0.0, CUTOFF=1.0, BONUS=0.0)
    return FedHybridSelector("100B")


def experienced(selector: FedHybridSelector, losses: dict[int, float]) -> FedHybridSelector:
    selector.begin(len(losses), 0)
    selector.select(fleet(len(losses)), len(losses), 0, rng())
    selector.observe(0, [Outcome(i, 10, loss) for i, loss in losses.items()])
    return selector


@pytest.mark.parametrize(("available", "expected"), [(50.0, 0.5), (100.0, 1.0), (300.0, 1.0), (math.inf, 1.0)])
def test_memory_utility_by_hand(available, expected) -> None:
    assert memory_utility(available, 100) == expected


def test_compute_utility_by_hand() -> None:
    assert compute_utility(30, 4.0) == 7.5
    assert compute_utility(30, 0.0) == 1.0
    assert compute_utility(30, math.inf) == 0.0


def test_exploration_falls_to_its_floor() -> None:
    shares = [exploration_share(round_) for round_ in (1, 2, 29, 30, 1000)]
    assert shares == pytest.approx([0.855, 0.81225, 0.9 * 0.95**29, 0.2, 0.2])


def test_rewards_by_hand(constant) -> None:
    np.testing.assert_array_equal(normalised_rewards(np.array([2.0, 2.0])), [0, 0])
    np.testing.assert_array_equal(normalised_rewards(np.array([2.0])), [0])
    constant(CLIP_QUANTILE=0.75)
    np.testing.assert_allclose(normalised_rewards(np.array([0.0, 1.0, 2.0, 100.0, 1.5])), [0, 0.5, 1, 1, 0.75])
    constant(CLIP_QUANTILE=1.0)
    np.testing.assert_allclose(normalised_rewards(np.array([1.0, 3.0, 5.0])), [0, 0.5, 1])


def test_bonus_by_hand() -> None:
    np.testing.assert_allclose(confidence_bonus(8, np.array([1, 2, 8])), np.sqrt(0.1 * np.log(8) / np.array([1, 2, 8])))
    np.testing.assert_array_equal(confidence_bonus(1, np.array([1])), [0])


def test_pool_by_hand(constant) -> None:
    scores = np.array([0.5, 1.0, 0.8, 0.56, 0.55, 0.8])
    assert best_pool(scores, 2).tolist() == [1, 2, 5, 3]
    assert best_pool(np.zeros(3), 1).tolist() == [0, 1, 2]
    constant(CUTOFF=1.0)
    assert best_pool(scores, 2).tolist() == [1, 2, 5]
    assert best_pool(scores, 6).tolist() == [1, 2, 5, 3, 4, 0]


def test_draws_follow_the_weights() -> None:
    counts = np.zeros(3)
    for seed in range(3000):
        counts[draw_by_weight(np.array([1e-20, 2e-20, 5e-20]), 1, rng(seed))] += 1
    np.testing.assert_allclose(counts / 3000, [1 / 8, 2 / 8, 5 / 8], atol=0.03)


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [0.0, 0.0, 1e300], [1.0, 0.0, 0.0]])
def test_weights_of_zero_can_be_drawn(weights) -> None:
    assert sorted(draw_by_weight(np.array(weights), 3, rng())) == [0, 1, 2]


def test_exploration_shares_the_slots(constant) -> None:
    constant(EXPLORATION=0.5, EXPLORATION_DECAY=1.0)
    for seed in range(20):
        selector = FedHybridSelector("100B")
        selector.begin(20, 0)
        selector.select(fleet(10), 10, 0, rng(seed))
        selector.observe(0, [Outcome(i, 10, 1.0 + i) for i in range(10)])
        assert sum(i < 10 for i in selector.select(fleet(20), 5, 1, rng(seed))) == 2


def test_whole_shares_stay_whole(constant) -> None:
    constant(EXPLORATION_DECAY=1.0)
    selector = FedHybridSelector("100B")
    selector.begin(40, 0)
    selector.select(fleet(20), 20, 0, rng())
    selector.observe(0, [Outcome(i, 10, 1.0 + i) for i in range(20)])
    assert sum(i < 20 for i in selector.select(fleet(40), 10, 1, rng())) == 1


def test_the_most_useful_are_chosen(greedy) -> None:
    selector = experienced(greedy, {0: 1.0, 1: 9.0, 2: 4.0, 3: 16.0})
    assert selector.select(fleet(4), 1, 1, rng()) == [3]
    there = [Candidate(i, 10, memory, 1.0) for i, memory in enumerate([100.0, 100.0, 50.0, 25.0])]
    # 1, 9, 2 and 4
    assert selector.select(there, 1, 1, rng()) == [1]
    there = [Candidate(i, 10, 100.0, seconds) for i, seconds in enumerate([0.1, 9.0, 1.0, 20.0])]
    # 100, 10, 40 and 8
    assert selector.select(there, 1, 1, rng()) == [0]
    assert selector.select(there, 2, 1, rng()) == [0, 2]


def test_the_bonus_favours_who_was_not_seen_for_long(greedy, constant) -> None:
    constant(BONUS=100.0)
    selector = experienced(greedy, {0: 1.0, 1: 9.0, 2: 4.0})
    selector.select(fleet(3)[1:], 2, 1, rng())
    assert selector.select(fleet(3), 1, 9, rng()) == [0]


def test_new_clients_are_drawn_by_memory_and_compute() -> None:
    counts = np.zeros(3)
    there = [Candidate(0, 10, 25.0, 1.0), Candidate(1, 10, 100.0, 1.0), Candidate(2, 10, 100.0, 0.5)]
    for seed in range(2000):
        selector = FedHybridSelector("100B")
        selector.begin(3, 0)
        counts[selector.select(there, 1, 0, rng(seed))] += 1
    np.testing.assert_allclose(counts / 2000, np.array([0.25, 1, 2]) / 3.25, atol=0.03)


def test_the_window_keeps_the_worst_new_clients_out(constant) -> None:
    constant(WINDOW=3)
    there = [Candidate(i, 10, 10.0 * (1 + i)) for i in range(10)]
    chosen = set()
    for seed in range(300):
        selector = FedHybridSelector("100B")
        selector.begin(10, 0)
        chosen.update(selector.select(there, 1, 0, rng(seed)))
    assert chosen == {7, 8, 9}


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_loss_that_is_not_finite_is_of_least_use(bad, greedy) -> None:
    selector = experienced(greedy, {0: bad, 1: 0.5, 2: 0.1})
    assert selector.select(fleet(3), 2, 1, rng()) == [1, 2]
    selector.observe(1, [Outcome(0, 10, 2.0)])
    assert selector.select(fleet(3), 1, 2, rng()) == [0]


def test_who_never_answers_counts_as_tried(greedy) -> None:
    selector = greedy
    selector.begin(5, 0)
    selector.select(fleet(4), 4, 0, rng())
    selector.observe(0, [Outcome(1, 10, 1.0), Outcome(2, 10, 2.0), Outcome(3, 10, 9.0)])
    assert selector.select(fleet(4), 2, 1, rng()) == [0, 3]


@pytest.mark.parametrize("losses", [dict.fromkeys(range(4), 0.0), dict.fromkeys(range(4), 2.0)])
def test_equal_losses_are_ties_for_chance(losses, greedy) -> None:
    selector = experienced(greedy, losses)
    assert {client for seed in range(60) for client in selector.select(fleet(4), 2, 1, rng(seed))} == {0, 1, 2, 3}


def test_memory_is_a_size() -> None:
    with pytest.raises(ValueError, match="'512' is not a size"):
        FedHybridSelector("512")
