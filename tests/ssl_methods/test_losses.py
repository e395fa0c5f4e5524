import math
import re

import pytest
import torch
from lightly.loss import DINOLoss, NTXentLoss, VICRegLoss
from torch import nn

from ssl_methods import BYOL, DINO, MoCoV3, SimCLR, SimSiam, TwoViews, VICReg, info_nce, nt_xent
from ssl_methods.dino import cross_view_entropy


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


@pytest.mark.parametrize(("second", "expected"), [((3.0, 4.0), -1.0), ((-3.0, -4.0), 1.0), ((-4.0, 3.0), 0.0)])
def test_simsiam_of_equal_opposite_and_orthogonal_vectors(headless, second, expected):
    first = torch.tensor([[3.0, 4.0]] * 2)
    assert headless(SimSiam).step((first, 7 * torch.tensor([second] * 2))).loss.item() == pytest.approx(expected)


def test_vicreg_by_hand(headless):
    """Columns vary by 2 and 0.5; the first view's covary by 1, the second's not at all."""
    first = torch.tensor([[1.0, 0.5], [-1.0, -0.5]])
    second = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    missing = (1 - (0.5 + 1e-4) ** 0.5) / 2, (1 - 1e-2) / 2
    expected = 3 * (0.25 / 2) + 2 * sum(missing) / 2 + 5 * (2 * 1.0**2) / 2
    output = headless(VICReg, invariance=3.0, variance=2.0, covariance=5.0).step((first, second))
    assert output.loss.item() == pytest.approx(expected)


def test_dino_by_hand(headless):
    """Centred targets (0, log 3) and (0, 0) are 1/4 and 3/4, and twice 1/2, at temperature 1."""
    method = headless(DINO, output_dim=2, temperature=0.5, target_temperature=1.0, centre_momentum=0.75)
    method.centre.mean.copy_(torch.tensor([1.0, 1.0]))
    first, second = torch.tensor([[1.0, 1.0 + math.log(3)]] * 2), torch.tensor([[1.0, 1.0]] * 2)
    output = method.step((first, second))
    against_even, against_ninefold = math.log(2), math.log(10)
    expected = (against_even + (against_ninefold + against_ninefold - math.log(9)) / 2) / 2
    assert output.loss.item() == pytest.approx(expected)
    method.centre.follow(torch.cat([first, second]).mean(dim=0))
    assert method.centre.mean.tolist() == pytest.approx([1.0, 1 + math.log(3) / 2 / 4])


@pytest.mark.parametrize("crops", [0, 3])
def test_cross_view_entropy_equals_lightlys(crops: int) -> None:
    outputs = torch.randn(4 + crops, 5, 6, generator=torch.Generator().manual_seed(crops))
    online, targets = list(outputs[2:]), list(outputs[:2])
    expected = DINOLoss(6, teacher_temp=0.5, student_temp=0.25)(targets, online)
    torch.testing.assert_close(cross_view_entropy(online, targets, 0.25, 0.5), expected)


def test_vicreg_equals_lightlys(headless) -> None:
    first, second = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(headless(VICReg).step((first, second)).loss, VICRegLoss()(first, second))


def test_local_crops_are_for_the_online_branch_alone(encoder, objective, images):
    method = objective(DINO, encoder(), TwoViews(crop_scale=(0.5, 1.0)), local_crops=2, local_scale=(0.1, 0.2))
    method.begin_client()
    targets = []
    method.target.register_forward_hook(lambda *_: targets.append(0))
    inputs = method.inputs(images(4), torch.zeros(4))
    output = method.step(inputs)
    assert (len(inputs), len(output.projections), len(targets)) == (4, 4, 2)
    assert len(method.example_inputs((4, 1, 16, 16))) == 4
    assert method.local_augment.crop_scale == (0.1, 0.2)


def test_local_crops_need_an_augmentation_that_crops(objective):
    with pytest.raises(ValueError, match="local_crops need an augmentation that crops"):
        objective(DINO, Points(), local_crops=1)


@pytest.mark.parametrize(
    ("method_class", "settings", "message"),
    [
        (SimSiam, {"bottleneck_dim": 0}, "bottleneck_dim must be at least 1, got 0"),
        (VICReg, {"variance": -1.0}, "variance must be from 0 to 1e+06, got -1.0"),
        (DINO, {"target_temperature": 0.0}, "target_temperature must be from 0.001 to 1000, got 0.0"),
        (DINO, {"centre_momentum": 2.0}, "centre_momentum must be between 0 and 1, got 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(objective, method_class, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        objective(method_class, Points(), **settings)


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
