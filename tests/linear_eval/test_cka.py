import pytest
import torch

from linear_eval import linear_cka


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
