"""Cohorts."""

import numpy as np
import pytest

from fedssl.server.participation import Cohort, Participation, check_dropout, cohort_size
from layerwise import Stage


def draw(seed: int, clients: int = 10, size: int = 4, dropout: float = 0.0) -> Cohort:
    stage = Stage(0, (0,), (0,), True, 1)
    return Participation([5] * clients, size, dropout, seed=seed).draw(0, [stage])


@pytest.mark.parametrize(
    ("participation", "expected"),
    [(1, 1), (10, 10), (3, 3), (1.0, 10), (0.5, 5), (0.25, 3), (0.21, 3), (0.001, 1)],
)
def test_whole_numbers_count_and_fractions_are_rounded_up(participation: float, expected: int) -> None:
    assert cohort_size(participation, 10) == expected


@pytest.mark.parametrize(
    ("participation", "message"),
    [
        (0, "participation 0 clients a round: allowed are 1 to 10"),
        (11, "participation 11 clients a round: allowed are 1 to 10"),
        (-1, "participation -1 clients"),
        (0.0, "participation 0.0 as a fraction must be above 0 and at most 1.0"),
        (1.5, "participation 1.5 as a fraction"),
        (-0.5, "participation -0.5 as a fraction"),
        (float("nan"), "participation nan as a fraction"),
    ],
)
def test_participation_is_checked(participation: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cohort_size(participation, 10)


def test_cohorts_are_drawn_without_replacement_in_ascending_order() -> None:
    for seed in range(50):
        participants = draw(seed).participants
        assert len(set(participants)) == 4
        assert list(participants) == sorted(participants)
        assert all(isinstance(client, int) and 0 <= client < 10 for client in participants)
    assert draw(0, size=10).participants == tuple(range(10))


def test_every_client_is_as_likely() -> None:
    counts = np.zeros(10)
    for seed in range(1000):
        counts[list(draw(seed).participants)] += 1
    assert counts == pytest.approx(400, abs=60)


def test_the_generator_decides() -> None:
    assert [draw(seed, dropout=0.5) for seed in range(5)] == [draw(seed, dropout=0.5) for seed in range(5)]
    assert len({draw(seed) for seed in range(20)}) > 10


def test_dropout_is_a_rate_and_divides_the_cohort() -> None:
    cohorts = [draw(seed, 20, 10, 0.3) for seed in range(300)]
    assert all(len(c.participants) + len(c.dropped) == 10 for c in cohorts)
    assert all(not set(c.participants) & set(c.dropped) for c in cohorts)
    assert sum(len(c.dropped) for c in cohorts) / 3000 == pytest.approx(0.3, abs=0.03)
    assert all(not draw(seed).dropped for seed in range(20))


def test_everyone_may_drop_out() -> None:
    assert any(not draw(seed, size=2, dropout=0.9).participants for seed in range(20))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_is_a_probability_below_one(dropout: float) -> None:
    with pytest.raises(ValueError, match=r"dropout must be .* below 1, got"):
        check_dropout(dropout)


def test_dropout_is_returned() -> None:
    assert (check_dropout(0.0), check_dropout(0.99)) == (0.0, 0.99)


def test_clients_that_are_not_connected_are_not_drawn() -> None:
    participation, stage = Participation([5] * 4, 2), Stage(0, (0,), (0,), True, 1)
    everyone = participation.draw(0, [stage])
    participation.online = {0, 1, 2, 3}
    assert participation.draw(0, [stage]) == everyone
    participation.online = {1, 3}
    assert participation.draw(0, [stage]) == Cohort((1, 3), unavailable=(0, 2))


def test_a_fraction_that_is_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match=r"participation 1e-300 of 10 clients is nobody: 0\.1 is one client"):
        cohort_size(1e-300, 10)
    assert cohort_size(0.01, 10) == 1
