import pytest
import torch

from linear_eval import feature_std, rankme


def test_feature_std_of_isotropic_features_is_one_whatever_their_length() -> None:
    x = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(x) == pytest.approx(1.0, abs=0.01)
    assert feature_std(100 * x) == pytest.approx(feature_std(x))


def test_feature_std_by_hand() -> None:
    # normalised: (1, 0) and (0, 1); deviation 0.5 in both dimensions, times sqrt(2)
    assert feature_std(torch.tensor([[3.0, 0.0], [0.0, 0.5]])) == pytest.approx(0.5 * 2**0.5)


@pytest.mark.parametrize("x", [torch.full((7, 3), 2.5), torch.zeros(4, 3), torch.tensor([[1.0, -2.0]])])
def test_feature_std_of_constant_features_or_one_image_is_zero(x: torch.Tensor) -> None:
    assert feature_std(x) == pytest.approx(0.0, abs=1e-12)


def test_rankme_counts_equal_directions() -> None:
    assert rankme(torch.eye(6)) == pytest.approx(6.0)
    assert rankme(torch.cat([torch.eye(4), -3 * torch.eye(4)])) == pytest.approx(4.0)


def test_rankme_by_hand() -> None:
    # singular values 3 and 1: shares 0.75 and 0.25
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(float(entropy.exp()), rel=1e-6)


@pytest.mark.parametrize(
    "x",
    [torch.outer(torch.arange(1.0, 8.0), torch.tensor([1.0, -2.0, 3.0])), torch.ones(9, 4), torch.ones(1, 4)],
)
def test_rankme_of_one_direction_is_one(x: torch.Tensor) -> None:
    assert rankme(x) == pytest.approx(1.0, abs=1e-4)


def test_rankme_of_nothing_but_zeros_is_zero() -> None:
    assert rankme(torch.zeros(3, 4)) == 0.0


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 0)])
def test_refuse(x: torch.Tensor) -> None:
    for measure in (feature_std, rankme):
        with pytest.raises(ValueError, match="non-empty matrix"):
            measure(x)
