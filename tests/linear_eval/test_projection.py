import pytest
import torch

from linear_eval.projection import principal_components


def test_by_hand() -> None:
    # Along the first axis -6, 0, 6 around the mean (sum of squares 72), along the third 2, -4, 2 (sum 24).
    x = torch.tensor([[1.0, 5.0, 9.0], [7.0, 5.0, 3.0], [13.0, 5.0, 9.0]])
    coordinates, shares = principal_components(x)
    assert coordinates[:, 1].tolist() == pytest.approx([-2.0, 4.0, -2.0], abs=1e-5)  # turned: 4 is furthest from 0
    assert sorted(coordinates[:, 0].tolist()) == pytest.approx([-6.0, 0.0, 6.0], abs=1e-5)
    assert shares.tolist() == pytest.approx([0.75, 0.25])


def test_the_sign_does_not_depend_on_that_of_the_features() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(principal_components(x)[0], principal_components(-x)[0])


def test_constant_features_lie_on_one_point() -> None:
    coordinates, shares = principal_components(torch.full((4, 3), 2.0))
    assert coordinates.tolist() == [[0.0, 0.0]] * 4
    assert shares.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(3,), (0, 4), (3, 1)])
def test_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="D of 2 or more"):
        principal_components(torch.zeros(shape))
