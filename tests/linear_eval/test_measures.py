import pytest
import torch

from linear_eval import feature_std, linear_cka, rankme


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


def test_by_hand() -> None:
    # Off the diagonal, the U-centred Gram matrix of (1, -1, 0, 0) is -1/3 for the pairs 12 and 34 and 1/6 elsewhere;
    # that of (1, 0, -1, 0) is -1/3 for 13 and 24. Squared norms 2/3, inner product -1/3.
    x, y = torch.tensor([[1.0], [-1.0], [0.0], [0.0]]), torch.tensor([[1.0], [0.0], [-1.0], [0.0]])
    torch.testing.assert_close(linear_cka([x, y], [x]), torch.tensor([[1.0], [-0.5]]).double())


def test_rotation_scale_and_shift_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    y = torch.randn(50, 9, generator=generator)
    same = linear_cka([x], [x, 3 * x @ rotation + 100, y])
    assert same[0, :2].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    torch.testing.assert_close(linear_cka([x @ rotation * 0.1], [y]), same[:, 2:], atol=1e-6, rtol=0)


def test_unrelated_representations_are_not_similar_even_if_images_are_few() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(60, 200, generator=generator) for _ in range(2))
    assert abs(float(linear_cka([x], [y]))) < 0.05


def test_a_constant_representation_is_similar_to_nothing() -> None:
    constant, x = torch.full((5, 3), 7.0), torch.eye(5)
    assert linear_cka([constant, x], [constant, x]).tolist() == [[0.0, 0.0], [0.0, pytest.approx(1.0)]]


def test_no_layers_have_no_similarities() -> None:
    assert linear_cka([], []).shape == (0, 0)


@pytest.mark.parametrize("shapes", [[(3, 2), (3, 2)], [(5, 2), (6, 2)], [(5, 2), (5,)]])
def test_refuses(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="same 4 or more images"):
        linear_cka([torch.zeros(shapes[0])], [torch.zeros(shapes[1])])
