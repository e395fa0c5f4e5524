from itertools import product

import pytest
import torch

from layerwise.memory.allocation import WIDTHS, allocate_bits


def variance(weights, bits):
    return sum(float(weight) / (2**b - 1) ** 2 for weight, b in zip(weights, bits, strict=True))


def test_by_hand():
    """At four bits the heavy channel keeps eight, and two light ones fall to two to pay for it."""
    assert allocate_bits(torch.tensor([1.0, 1000.0, 1.1]), 4).tolist() == [2, 8, 2]
    assert allocate_bits(torch.ones(5), 4).tolist() == [4] * 5


@pytest.mark.parametrize("average", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_average_is_never_exceeded_and_nearly_used(average, seed):
    bits = allocate_bits(torch.rand(37, generator=torch.Generator().manual_seed(seed)) ** 4, average)
    assert set(bits.tolist()) <= set(WIDTHS)
    assert average * 37 - 4 < bits.sum() <= average * 37


@pytest.mark.parametrize("seed", range(10))
def test_against_every_allocation_that_uses_as_few_bits(seed):
    """A greedy allocation is the best among all that take no more bits than it took."""
    weights = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 6
    chosen = allocate_bits(weights, 4)
    rivals = [bits for bits in product(WIDTHS, repeat=6) if sum(bits) <= int(chosen.sum())]
    assert variance(weights, chosen.tolist()) <= min(variance(weights, bits) for bits in rivals) * (1 + 1e-9)


def test_channels_without_range_and_without_sense():
    assert allocate_bits(torch.zeros(4), 4).sum() <= 16
    assert allocate_bits(torch.tensor([1.0, float("nan"), 1.0, 1.0]), 4)[1] == 8
