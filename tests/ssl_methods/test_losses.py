import math
import re

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn

from ssl_methods import BYOL, MoCoV3, SimCLR, info_nce, nt_xent


class Points(nn.Module):
    """An encoder that hands its input on."""

    feature_dim = 2

    def forward(self, points):
        return points


@pytest.fixture
def headless(objective):
    """A method whose backbone and heads change nothing, so that its step is the bare loss."""

    def build(method_class, **settings):
        method = objective(method_class, Points(), **settings)
        for name in method.heads():
            setattr(method, name, nn.Identity())
        method.begin_client()
        return method

    return build


def test_info_nce_of_two_by_two():
    """Cosines: 1 and 0.6 for the first query, 0 and 0.8 for the second; halved temperature doubles them."""
    query = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    key = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    expected = (math.log(1 + math.exp(1.2 - 2.0)) + math.log(1 + math.exp(0.0 - 1.6))) / 2
    assert expected == pytest.approx(0.277501, abs=1e-6)
    assert info_nce(query, key, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_info_nce_has_a_direction():
    """Swapped, the second row's cosines are 0.6 and 0.8 instead of 0 and 0.8."""
    query = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    key = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    expected = (math.log(1 + math.exp(0.0 - 2.0)) + math.log(1 + math.exp(1.2 - 1.6))) / 2
    assert info_nce(query, key, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_info_nce_of_equal_embeddings_is_the_log_of_the_batch():
    ones = torch.ones(5, 3)
    assert info_nce(ones, ones, temperature=0.1).item() == pytest.approx(math.log(5))


def test_info_nce_stays_finite_for_opposites_at_low_temperature():
    points = torch.eye(4)
    loss = info_nce(points, -points, temperature=0.001)
    assert loss.item() == pytest.approx(1000 + math.log(3), rel=1e-6)


def test_simclr_of_two_images(headless):
    """Every embedding has one positive of cosine 1 and two negatives of cosine 0."""
    points = torch.eye(2)
    output = headless(SimCLR, temperature=0.5).step((points, 3 * points))
    assert output.loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2.0)), rel=1e-6)
    assert torch.equal(output.projections[1], 3 * points)


def test_moco_v3_sums_both_directions(headless):
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    output = headless(MoCoV3, temperature=0.5).step((first, second))
    expected = sum(math.log(1 + math.exp(difference)) for difference in (-0.8, -1.6, -2.0, -0.4)) / 2
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("second", "expected"), [((3.0, 4.0), 0.0), ((-3.0, -4.0), 4.0), ((-4.0, 3.0), 2.0)])
def test_byol_of_equal_opposite_and_orthogonal_vectors(headless, second, expected):
    first = torch.tensor([[3.0, 4.0]] * 2)
    output = headless(BYOL).step((first, 7 * torch.tensor([second] * 2)))
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf, 1e308, None])
def test_temperature_must_be_usable(temperature, objective):
    for method_class in (SimCLR, MoCoV3):
        with pytest.raises(ValueError, match=re.escape(f"temperature must be from 0.001 to 1000, got {temperature}")):
            objective(method_class, Points(), temperature=temperature)


@pytest.mark.parametrize("momentum", [-0.01, 1.01, math.nan])
def test_momentum_must_lie_between_zero_and_one(momentum, objective):
    for method_class in (BYOL, MoCoV3):
        with pytest.raises(ValueError, match=f"momentum must be between 0 and 1, got {momentum}"):
            objective(method_class, Points(), momentum=momentum)


@pytest.mark.parametrize("momentum", [0, 0.5, 1])
def test_allowed_values_pass_through(momentum, objective):
    method = objective(MoCoV3, Points(), temperature=0.05, momentum=momentum)
    assert (method.temperature, method.momentum) == (0.05, momentum)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_nt_xent_equals_lightlys(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    first, second = torch.randn(2, count, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(nt_xent(first, second, 0.3), NTXentLoss(0.3)(first, second))
