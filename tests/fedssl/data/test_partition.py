from itertools import product

import numpy as np
import pytest
import torch

from fedssl.data.datasets import ArrayImages
from fedssl.data.partition import (
    IID,
    Dirichlet,
    Partitioner,
    PowerLaw,
    Shards,
    apportion,
    partition_table,
    raise_to_minimum,
)

LABELS = np.random.default_rng(7).integers(0, 10, 600)


def divide(partitioner: Partitioner, labels: np.ndarray, clients: int, seed: int = 0) -> list[np.ndarray]:
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(labels), -1, -1, -1)
    images = ArrayImages("labelled", pixels, torch.from_numpy(labels), ())
    return partitioner(images, clients, np.random.default_rng(seed))


def assert_division(parts: list[np.ndarray], images: int, clients: int, min_size: int = 1) -> None:
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(images))
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= min_size
        assert np.all(np.diff(part) > 0)


PARTITIONERS = [IID(), Dirichlet(1e-3), Dirichlet(0.5), Dirichlet(1e3), Shards(2), PowerLaw(1.5)]


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=lambda p: type(p).__name__)
def test_every_image_goes_to_exactly_one_client(partitioner: Partitioner) -> None:
    for seed, clients in product(range(5), (5, 17, 100, 300)):
        parts = divide(partitioner, LABELS, clients, seed)
        assert_division(parts, 600, clients)
        again = divide(partitioner, LABELS, clients, seed)
        assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=lambda p: type(p).__name__)
def test_other_seeds_divide_otherwise(partitioner: Partitioner) -> None:
    first, second = (divide(partitioner, LABELS, 10, seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_dirichlet_keeps_the_minimum_for_any_beta() -> None:
    for seed, beta, (clients, min_size) in product(
        range(4), (1e-300, 1e-3, 0.1, 1.0, 1e3, 1e6), ((10, 10), (60, 10), (100, 1), (599, 1))
    ):
        parts = divide(Dirichlet(beta, min_size), LABELS, clients, seed)
        assert_division(parts, 600, clients, min_size)


@pytest.mark.parametrize("partitioner", [IID(), Dirichlet(0.1), Shards(1), PowerLaw(2.0)])
def test_as_many_clients_as_images(partitioner: Partitioner) -> None:
    assert_division(divide(partitioner, LABELS, 600), 600, 600)


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_a_single_class_and_a_single_client(partitioner: Partitioner) -> None:
    assert_division(divide(partitioner, np.zeros(40, int), 8), 40, 8)
    assert_division(divide(partitioner, np.zeros(40, int), 1), 40, 1)


def test_iid_sizes_differ_by_one_at_most() -> None:
    assert sorted({len(part) for part in divide(IID(), LABELS, 7)}) == [85, 86]


def test_dirichlet_concentration_moves_from_skewed_to_even() -> None:
    def classes_held(beta: float) -> float:
        parts = divide(Dirichlet(beta), np.repeat(np.arange(10), 600), 10)
        return float(np.mean([len(np.unique(np.repeat(np.arange(10), 600)[part])) for part in parts]))

    assert classes_held(1e-3) < 2.5 < classes_held(0.3) < 10 == classes_held(1e3)


def test_dirichlet_even_limit_matches_the_class_mixture() -> None:
    labels = np.repeat([0, 1], [400, 200])
    for part in divide(Dirichlet(1e6), labels, 4):
        assert np.bincount(labels[part]) == pytest.approx([100, 50], abs=1)


@pytest.mark.parametrize("classes_per_client", [1, 2, 3])
def test_shards_bound_the_classes_of_a_client_also_if_unbalanced(classes_per_client: int) -> None:
    for seed in range(10):
        labels = np.repeat(np.arange(6), [1, 3, 50, 7, 120, 19])
        parts = divide(Shards(classes_per_client), labels, 12, seed)
        assert_division(parts, 200, 12)
        assert max(len(np.unique(labels[part])) for part in parts) <= classes_per_client


def test_shards_of_balanced_data_are_equal() -> None:
    parts = divide(Shards(2), np.repeat(np.arange(10), 60), 20)
    assert {len(part) for part in parts} == {30}


def test_shards_refuses_too_few_and_too_many() -> None:
    with pytest.raises(ValueError, match=r"4 clients x classes_per_client 2 = 8 shards, must be from 10"):
        divide(Shards(2), np.repeat(np.arange(10), 10), 4)
    with pytest.raises(ValueError, match=r"to 100 \(number of images\)"):
        divide(Shards(2), np.repeat(np.arange(10), 10), 60)


def test_power_law_sizes() -> None:
    sizes = [len(part) for part in divide(PowerLaw(1.0), np.zeros(110, int), 3)]
    assert sizes == [60, 30, 20]
    assert {len(part) for part in divide(PowerLaw(0.0), LABELS, 10)} == {60}
    assert [len(part) for part in divide(PowerLaw(1000.0, min_size=5), np.zeros(30, int), 3)] == [20, 5, 5]


def test_partitioners_without_labels_take_unlabelled_images() -> None:
    for partitioner in (IID(), PowerLaw(1.0)):
        assert_division(divide(partitioner, np.full(50, -1), 5), 50, 5)


@pytest.mark.parametrize("partitioner", [Dirichlet(0.5), Shards()])
def test_label_based_partitioners_refuse_unlabelled_images(partitioner: Partitioner) -> None:
    with pytest.raises(ValueError, match=r"3 images have none \(-1\): use IID or PowerLaw"):
        divide(partitioner, np.array([0, 1, -1, -1, -1, 0]), 2)


def test_input_errors() -> None:
    with pytest.raises(ValueError, match=r"11 clients .* need 11 images, but there are 10"):
        divide(IID(), np.zeros(10), 11)
    with pytest.raises(ValueError, match=r"need 12 images, but there are 10"):
        divide(Dirichlet(0.5, min_size=4), np.zeros(10), 3)
    with pytest.raises(ValueError, match="there are 0"):
        divide(IID(), np.zeros(0), 1)
    with pytest.raises(ValueError, match="num_clients must be at least 1, got 0"):
        divide(IID(), np.zeros(10), 0)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_refuses_beta(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        Dirichlet(beta)


def test_other_constructor_errors() -> None:
    with pytest.raises(ValueError, match="min_size must be at least 1, got 0"):
        Dirichlet(0.5, min_size=0)
    with pytest.raises(ValueError, match="classes_per_client"):
        Shards(0)
    with pytest.raises(ValueError, match="exponent"):
        PowerLaw(-0.1)


def test_apportion_by_largest_remainder() -> None:
    assert apportion(np.array([0.5, 0.3, 0.2]), 7).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert apportion(np.array([0.25] * 4), 6).tolist() == [2, 2, 1, 1]


def test_raise_to_minimum_takes_from_the_largest_class_of_the_largest_client() -> None:
    counts = np.array([[1, 5], [0, 0], [3, 0]])
    raise_to_minimum(counts, 2)
    assert counts.tolist() == [[1, 3], [0, 2], [3, 0]]


def test_table_has_a_row_a_client() -> None:
    table = partition_table(np.array([[1, 1], [1, 2]]), np.array([2, 3]), ["cat", "dog"], ["north", "south"])
    assert [line.split() for line in table.splitlines()[:-1]] == [
        ["client", "images", "cat", "dog"],
        ["north", "2", "1", "1"],
        ["south", "3", "1", "2"],
        ["all", "5", "2", "3"],
    ]
    assert table.splitlines()[-1] == "images a client: min 2, median 2.5, max 3"


def test_table_sums_up_many_clients_and_many_classes() -> None:
    counts = np.repeat(2 * np.eye(25, dtype=int), 2, axis=1)
    lines = partition_table(
        counts, counts.sum(axis=1), [str(c) for c in range(50)], [str(c) for c in range(25)]
    ).splitlines()
    assert len(lines) == 1 + 20 + 2 + 1
    assert lines[0].split() == ["client", "images", "classes"]
    assert lines[21].split()[:2] == ["20-24", "20"]
    assert lines[22].split() == ["all", "100", "50"]


def test_table_of_unlabelled_images() -> None:
    table = partition_table(np.zeros((2, 0), int), np.array([3, 2]), (), ("0", "1"))
    assert [line.split() for line in table.splitlines()[1:4]] == [["0", "3"], ["1", "2"], ["all", "5"]]
