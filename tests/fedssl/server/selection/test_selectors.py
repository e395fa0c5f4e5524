"""What all selectors keep to."""

import io

import numpy as np
import pytest
import torch

from fedssl.server.selection import (
    Candidate,
    FedHybridSelector,
    Outcome,
    RandomSelector,
    RoundRobinSelector,
    Selector,
    SmartFreezeSelector,
)

CLIENTS = 12
FACTORIES = [RandomSelector, RoundRobinSelector, SmartFreezeSelector, lambda: FedHybridSelector("1KB")]
SELECTORS = pytest.mark.parametrize("make", FACTORIES, ids=["random", "round-robin", "smartfreeze", "fedhybrid"])
BAD_LOSSES = [float("nan"), float("inf"), 0.0, 1.0]


def candidates_of(round_: int, present: float = 0.7) -> list[Candidate]:
    """A changing part of an unequal fleet."""
    rng = np.random.default_rng(100 + round_)
    there = np.flatnonzero(rng.random(CLIENTS) < present).tolist()
    return [Candidate(i, 10 + 7 * i % 40, 100.0 * (1 + i % 12), 1.0 + i % 5) for i in there]


def outcomes_of(round_: int, chosen: list[int]) -> list[Outcome]:
    """Losses, some of them bad, and updates of two directions, some of them zero."""
    rng = np.random.default_rng(200 + round_)
    return [
        Outcome(
            i,
            20,
            BAD_LOSSES[int(rng.integers(4))] if rng.random() < 0.3 else float(rng.random()),
            1.0,
            rng.normal(size=8) * (rng.random() < 0.8) + (i % 2),
        )
        for i in chosen
    ]


def play(selector: Selector, rounds: range, size: int = 4, seed: int = 0) -> list[list[int]]:
    """Rounds of a run with a stage every four."""
    history = []
    for round_ in rounds:
        if round_ % 4 == 0:
            selector.begin_stage(round_ // 4)
        history.append(selector.select(candidates_of(round_), size, round_, np.random.default_rng([seed, round_])))
        selector.observe(round_, outcomes_of(round_, history[-1]))
    return history


def started(make, seed: int = 0) -> Selector:
    selector = make()
    selector.begin(CLIENTS, seed)
    return selector


@SELECTORS
@pytest.mark.parametrize("size", [1, 3, 5, 50])
def test_only_candidates_each_once_ascending_and_as_many_as_asked(make, size) -> None:
    for round_, chosen in enumerate(play(started(make), range(40), size)):
        ids = [candidate.client_id for candidate in candidates_of(round_)]
        assert set(chosen) <= set(ids)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(size, len(ids))
        assert all(type(client) is int for client in chosen)


@SELECTORS
def test_nobody_is_chosen_from_nobody(make) -> None:
    selector = started(make)
    assert selector.select([], 3, 0, np.random.default_rng(0)) == []
    selector.observe(0, [])
    assert len(play(selector, range(1, 4))[-1]) == 4
    assert selector.select([], 3, 4, np.random.default_rng(0)) == []


@SELECTORS
def test_the_seed_decides(make) -> None:
    assert play(started(make), range(20)) == play(started(make), range(20))


@SELECTORS
def test_the_order_of_the_candidates_does_not_matter(make) -> None:
    first, second = started(make), started(make)
    play(first, range(9)), play(second, range(9))
    there = candidates_of(9)
    generators = (np.random.default_rng(9) for _ in range(2))
    assert first.select(there, 4, 9, next(generators)) == second.select(there[::-1], 4, 9, next(generators))


@SELECTORS
def test_begin_forgets_everything(make) -> None:
    selector = started(make)
    before = play(selector, range(10))
    selector.begin(CLIENTS, 0)
    assert play(selector, range(10)) == before


@SELECTORS
@pytest.mark.parametrize("stop", [1, 6, 8])
def test_a_saved_state_continues_exactly(make, stop) -> None:
    expected = play(started(make), range(20))
    selector = started(make)
    play(selector, range(stop))
    file = io.BytesIO()
    torch.save(selector.state_dict(), file)
    file.seek(0)
    resumed = started(make)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert play(resumed, range(stop, 20)) == expected[stop:]


@SELECTORS
def test_a_state_is_a_copy(make) -> None:
    selector = started(make)
    play(selector, range(6))
    state = selector.state_dict()
    expected = play(selector, range(6, 12))
    resumed = started(make)
    resumed.load_state_dict(state)
    assert play(resumed, range(6, 12)) == expected


@pytest.mark.parametrize("size", [1, 4, 12])
def test_random_among_all_is_the_generators_plain_draw(size) -> None:
    everybody = [Candidate(i, 10) for i in range(CLIENTS)]
    for seed in range(20):
        chosen = RandomSelector().select(everybody, size, 0, np.random.default_rng(seed))
        assert chosen == np.sort(np.random.default_rng(seed).choice(CLIENTS, size, replace=False)).tolist()


def test_random_is_uniform_over_the_candidates() -> None:
    there = [Candidate(i, 10 * i) for i in (2, 5, 7, 11)]
    counts = np.zeros(CLIENTS)
    for seed in range(1000):
        counts[RandomSelector().select(there, 2, 0, np.random.default_rng(seed))] += 1
    assert counts[[2, 5, 7, 11]] == pytest.approx(500, abs=60)
    assert counts.sum() == 2000


def test_round_robin_takes_turns_and_skips_the_absent() -> None:
    selector = RoundRobinSelector()
    selector.begin(5, 0)
    rng = np.random.default_rng(0)

    def turn(*there: int) -> list[int]:
        return selector.select([Candidate(i, 10) for i in there], 2, 0, rng)

    assert [turn(*range(5)) for _ in range(3)] == [[0, 1], [2, 3], [0, 4]]
    assert turn(0, 3, 4) == [3, 4]
    assert turn(4) == [4]
    assert turn() == []
    assert turn(1, 2, 3) == [1, 2]


def test_only_smartfreeze_wants_updates() -> None:
    assert [make().wants_updates for make in FACTORIES] == [False, False, True, False]
