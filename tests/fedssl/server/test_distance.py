"""Distance between the local models of a round."""

import math

import pytest
import torch

from fedssl.federation.settings import ServerSettings
from fedssl.server.aggregation import PrivateMean
from fedssl.server.distance import ClientDistance

REFERENCE = {"a/w": torch.tensor([1.0, 1.0]), "b/w": torch.tensor([5.0]), "a/running_mean": torch.zeros(1)}


def distance(*clients: dict[str, list[float]]) -> float:
    measured = ClientDistance(REFERENCE, ["a/w", "b/w"])
    for tensors in clients:
        measured.add({key: torch.tensor(values) for key, values in tensors.items()})
    return measured.value()


def test_of_two_clients_it_is_the_norm_of_their_difference() -> None:
    first, second = {"a/w": [1.0, 2.0], "b/w": [3.0]}, {"a/w": [3.0, 2.0], "b/w": [2.0]}
    assert distance(first, second) == pytest.approx(math.sqrt(2**2 + 1**2))


def test_of_more_it_is_the_root_mean_square_over_pairs() -> None:
    values = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-1.0, 2.0], [7.0, 7.0]])
    pairs = [float((a - b).square().sum()) for i, a in enumerate(values) for b in values[:i]]
    measured = distance(*({"a/w": each.tolist()} for each in values))
    assert measured == pytest.approx(math.sqrt(sum(pairs) / len(pairs)))


def test_weights_that_some_clients_lack_count_among_those_that_trained_them() -> None:
    assert distance({"a/w": [1.0, 0.0], "b/w": [9.0]}, {"a/w": [1.0, 2.0]}) == pytest.approx(2.0)
    assert math.isnan(distance({"a/w": [1.0, 0.0]}, {"b/w": [1.0]}))


def test_statistics_are_no_weights() -> None:
    assert math.isnan(distance({"a/running_mean": [1.0]}, {"a/running_mean": [2.0]}))


def test_small_differences_between_large_weights_are_kept() -> None:
    measured = ClientDistance({"a/w": torch.full((10,), 1e4)}, ["a/w"])
    measured.add({"a/w": torch.full((10,), 1e4) + 0.001 * torch.arange(10)})
    measured.add({"a/w": torch.full((10,), 1e4)})
    expected = (torch.full((10,), 1e4) + 0.001 * torch.arange(10) - 1e4).norm()
    assert measured.value() == pytest.approx(float(expected), rel=1e-5)


def test_a_private_mean_does_not_tell_it() -> None:
    with pytest.raises(ValueError, match=r"PrivateMean hides what clients gave.*--model\.measure_distance"):
        ServerSettings(aggregation=PrivateMean(clip=1.0, noise_multiplier=1.0), measure_distance=True)
