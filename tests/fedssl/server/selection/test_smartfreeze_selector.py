"""SmartFreeze's selector."""

import math

import numpy as np
import pytest

from fedssl.server.selection import Candidate, Outcome, SmartFreezeSelector
from fedssl.server.selection.smartfreeze import data_utility, speed_factor

NAN = float("nan")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fleet(number: int, images: int = 10) -> list[Candidate]:
    return [Candidate(i, images) for i in range(number)]


def experienced(losses: dict[int, float], updates: dict[int, np.ndarray] | None = None) -> SmartFreezeSelector:
    """A selector that never explores and has seen everybody once."""
    selector = SmartFreezeSelector(exploration=0.0)
    selector.begin(len(losses), 0)
    selector.select(fleet(len(losses)), len(losses), 0, rng())
    selector.observe(0, [Outcome(i, 10, loss, 1.0, (updates or {}).get(i)) for i, loss in losses.items()])
    return selector


def test_utilities_by_hand() -> None:
    assert data_utility(30, 4.0) == 60.0
    assert data_utility(30, 0.0) == 0.0
    assert speed_factor(4.0, 2.0, 2.0) == 0.25
    assert speed_factor(4.0, 2.0, 0.0) == 1.0
    assert speed_factor(1.0, 2.0, 2.0) == 1.0
    assert speed_factor(0.0, 0.0, 2.0) == 1.0
    assert speed_factor(math.inf, 2.0, 2.0) == 0.0


def test_the_first_choice_is_random() -> None:
    counts = np.zeros(8)
    for seed in range(1000):
        selector = SmartFreezeSelector()
        selector.begin(8, 0)
        there = [Candidate(i, 10 + i, seconds=float(i)) for i in range(8)]
        counts[selector.select(there, 2, 0, rng(seed))] += 1
    assert counts == pytest.approx(250, abs=50)


def test_clients_never_chosen_come_first() -> None:
    selector = SmartFreezeSelector(exploration=0.0)
    selector.begin(9, 0)
    seen: list[int] = []
    for round_ in range(3):
        chosen = selector.select(fleet(9), 3, round_, rng(round_))
        selector.observe(round_, [Outcome(i, 10, 100.0) for i in chosen])
        seen += chosen
    assert sorted(seen) == list(range(9))


def test_the_most_useful_are_chosen() -> None:
    selector = experienced({0: 1.0, 1: 9.0, 2: 4.0, 3: 16.0})
    assert selector.select(fleet(4), 2, 1, rng()) == [1, 3]
    there = [Candidate(0, 50), Candidate(1, 10), Candidate(2, 10), Candidate(3, 10)]
    assert selector.select(there, 2, 1, rng()) == [0, 3]


def test_slow_clients_are_disfavoured() -> None:
    selector = experienced({0: 1.0, 1: 1.0, 2: 9.0, 3: 1.2})
    there = [Candidate(i, 10, seconds=seconds) for i, seconds in enumerate([1.0, 2.0, 4.0, 2.0])]
    # The median is 2 s; utilities are 10, 10, 30 / 4 = 7.5 and 10.95.
    assert [selector.select(there, 1, 1, rng(seed)) for seed in range(5)] == [[3]] * 5
    assert [selector.select([there[2], there[3]], 1, 1, rng())] == [[2]]
    assert 2 not in selector.select(there, 3, 1, rng())


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_loss_that_is_not_finite_is_of_no_use(bad) -> None:
    selector = experienced({0: bad, 1: 0.5, 2: 0.1})
    assert selector.select(fleet(3), 2, 1, rng()) == [1, 2]
    selector.observe(1, [Outcome(0, 10, 2.0), Outcome(1, 10, bad)])
    assert selector.select(fleet(3), 2, 2, rng()) == [0, 2]


def test_who_never_answers_does_not_stay_first() -> None:
    selector = SmartFreezeSelector(exploration=0.0)
    selector.begin(4, 0)
    selector.select(fleet(4), 4, 0, rng())
    selector.observe(0, [Outcome(1, 10, 1.0), Outcome(2, 10, 2.0), Outcome(3, 10, 9.0)])
    assert selector.select(fleet(4), 2, 1, rng()) == [0, 3]
    assert selector.select(fleet(4), 1, 1, rng()) == [3]


def test_nobody_answered() -> None:
    selector = SmartFreezeSelector()
    selector.begin(4, 0)
    selector.select(fleet(4), 4, 0, rng())
    selector.observe(0, [])
    assert len(selector.select(fleet(4), 2, 1, rng())) == 2


def test_ties_are_broken_by_chance() -> None:
    selector = experienced(dict.fromkeys(range(6), 1.0))
    counts = np.zeros(6)
    for seed in range(600):
        counts[selector.select(fleet(6), 2, 1, rng(seed))] += 1
    assert counts == pytest.approx(200, abs=50)


def test_communities_share_the_slots_by_their_images() -> None:
    directions = np.eye(2)
    updates = {i: directions[i % 2] + 0.01 * rng(i).normal(size=2) for i in range(8)}
    losses = {i: float(1 + i) if i % 2 else 0.001 * (1 + i) for i in range(8)}
    selector = experienced(losses, updates)
    assert selector.select(fleet(8), 4, 1, rng()) == [4, 5, 6, 7]
    there = [Candidate(i, 30 if i % 2 else 10) for i in range(8)]
    assert selector.select(there, 4, 1, rng()) == [3, 5, 6, 7]
    assert selector.select(fleet(8)[::2], 3, 1, rng()) == [2, 4, 6]


def test_a_new_stage_forgets_the_communities_but_not_the_losses() -> None:
    updates = {i: np.eye(2)[i % 2] for i in range(4)}
    selector = experienced({0: 0.1, 1: 5.0, 2: 0.2, 3: 6.0}, updates)
    assert selector.select(fleet(4), 2, 1, rng()) == [2, 3]
    selector.begin_stage(1)
    assert selector.select(fleet(4), 2, 2, rng()) == [1, 3]


def test_useless_updates_make_no_community() -> None:
    updates = {0: np.zeros(2), 1: np.array([NAN, 1.0]), 2: np.array([1.0, 0.0]), 3: np.array([0.0, 1.0])}
    selector = experienced(dict.fromkeys(range(4), 1.0), updates)
    assert selector.state_dict()["community"] == {2: 0, 3: 1}


def test_the_probe_takes_each_clients_first_update_and_ends() -> None:
    selector = SmartFreezeSelector(probe_rounds=2)
    selector.begin(4, 0)
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    selector.observe(0, [Outcome(0, 10, 1.0, update=right), Outcome(1, 10, 1.0, update=right)])
    selector.observe(1, [Outcome(3, 10, NAN)])
    assert selector.state_dict()["probed"] == 1
    selector.observe(2, [Outcome(0, 10, 1.0, update=up), Outcome(2, 10, 1.0, update=up)])
    selector.observe(3, [Outcome(3, 10, 1.0, update=up)])
    state = selector.state_dict()
    assert state["community"] == {0: 0, 1: 0, 2: 1}
    assert (state["probed"], state["updates"]) == (2, {})


def test_exploration_reaches_the_useless() -> None:
    selector = SmartFreezeSelector()
    selector.begin(10, 0)
    selector.select(fleet(10), 10, 0, rng())
    selector.observe(0, [Outcome(i, 10, 1.0 if i < 5 else NAN) for i in range(10)])
    explored = [sum(i >= 5 for i in selector.select(fleet(10), 5, 1, rng(seed))) for seed in range(2000)]
    # Each of 5 slots explores with probability 0.1; e explored slots draw from 5 useless and e useful clients.
    expected = sum(math.comb(5, e) * 0.1**e * 0.9 ** (5 - e) * e * 5 / (5 + e) for e in range(6))
    assert np.mean(explored) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be at least 0, got -1.0"),
        ({"alpha": NAN}, "alpha must be at least 0, got nan"),
        ({"exploration": 1.5}, "exploration must be from 0 to 1, got 1.5"),
        ({"exploration": NAN}, "exploration must be from 0 to 1, got nan"),
        ({"probe_rounds": 0}, "probe_rounds must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        SmartFreezeSelector(**settings)
