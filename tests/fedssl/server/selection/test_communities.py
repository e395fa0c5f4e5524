"""Similarities, communities and shares."""

import numpy as np
import pytest

from fedssl.server.selection.smartfreeze import (
    find_communities,
    proportional_split,
)


def planted(rng: np.random.Generator, groups: list[list[int]], noise: float = 0.3) -> np.ndarray:
    """Updates of clients around the direction of their group."""
    updates = np.empty((sum(map(len, groups)), 50))
    for group in groups:
        direction = rng.normal(size=50)
        updates[group] = direction + noise * rng.normal(size=(len(group), 50))
    return updates


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_length_of_updates_does_not_matter(scale) -> None:
    updates = np.array([[1.0, 2.0], [2.0, 1.0], [-1.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    assert find_communities([0, 1, 2, 3], updates * np.float32(scale), 0) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found(seed) -> None:
    rng = np.random.default_rng(seed)
    rows = [[0, 2, 4, 6, 8], [1, 3, 5], [7, 9, 10, 11]]
    clients = [10 * row for row in range(12)]
    found = find_communities(clients, planted(rng, rows), seed)
    assert found == [[10 * row for row in group] for group in rows]


def test_clients_that_are_alike_stay_together() -> None:
    updates = np.tile(np.random.default_rng(0).normal(size=7), (6, 1)) * np.arange(1, 7)[:, None]
    assert find_communities([0, 1, 2, 3, 4, 5], updates, 0) == [[0, 1, 2, 3, 4, 5]]


def test_clients_without_anything_in_common_stay_alone() -> None:
    assert find_communities([0, 1, 2], np.eye(3), 0) == [[0], [1], [2]]
    assert find_communities([4], np.ones((1, 3)), 0) == [[4]]


@pytest.mark.parametrize(
    ("size", "weights", "capacities", "offset", "expected"),
    [
        (4, [1, 1], [9, 9], 0.0, [2, 2]),
        (6, [1, 2, 3], [9, 9, 9], 0.5, [1, 2, 3]),
        (3, [1, 1], [9, 9], 0.0, [1, 2]),
        (3, [1, 1], [9, 9], 0.5, [2, 1]),
        (1, [1, 1, 2], [9, 9, 9], 0.0, [0, 0, 1]),
        (1, [1, 1, 2], [9, 9, 9], 0.5, [0, 1, 0]),
        (1, [1, 1, 2], [9, 9, 9], 0.8, [1, 0, 0]),
        (6, [10, 1, 1], [2, 9, 9], 0.0, [2, 2, 2]),
        (5, [1, 0, 0], [2, 1, 4], 0.0, [2, 1, 2]),
        (3, [0, 0], [2, 2], 0.5, [2, 1]),
        (3, [0.1, 0.2, 0.3], [9, 9, 9], 0.0, [0, 1, 2]),
        (0, [1, 1], [9, 9], 0.9, [0, 0]),
        (0, [], [], 0.9, []),
        (7, [5, 1], [3, 4], 0.3, [3, 4]),
    ],
)
def test_shares_by_hand(size, weights, capacities, offset, expected) -> None:
    assert proportional_split(size, weights, capacities, offset) == expected


def test_shares_add_up_and_are_proportional_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    weights = [1, 5, 3, 11, 0.5]
    shares = np.array([proportional_split(3, weights, [9] * 5, rng.random()) for _ in range(4000)])
    assert (shares.sum(axis=1) == 3).all()
    np.testing.assert_allclose(shares.mean(axis=0), 3 * np.array(weights) / 20.5, atol=0.04)


def test_any_shares_fit() -> None:
    rng = np.random.default_rng(1)
    for offset in [0.0, float(np.nextafter(1, 0))] * 150:
        capacities = rng.integers(1, 6, size=rng.integers(1, 7)).tolist()
        size = int(rng.integers(0, sum(capacities) + 1))
        weights = rng.integers(0, 4, size=len(capacities)).tolist()
        shares = proportional_split(size, weights, capacities, offset)
        assert sum(shares) == size
        assert all(0 <= share <= capacity for share, capacity in zip(shares, capacities, strict=True))
