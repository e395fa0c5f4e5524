import pytest
import torch

from ssl_methods.augment.color import apply_where_
from ssl_methods.augment.geometry import between
from ssl_methods.augment.views import UnitDraws, draw_units


def test_units_are_uniform_and_differ_between_images_and_decisions():
    units = torch.stack(draw_units(5000, torch.Generator().manual_seed(0)))
    assert units.shape == (len(UnitDraws._fields), 5000)
    torch.testing.assert_close(units.mean(dim=1), torch.full((len(units),), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(units.var(dim=1), torch.full((len(units),), 1 / 12), atol=0.005, rtol=0)
    off_diagonal = units.corrcoef() - torch.eye(len(units))
    assert off_diagonal.abs().max() < 0.07
    assert units[:, :100].unique().numel() > 0.99 * units[:, :100].numel()


def test_between():
    torch.testing.assert_close(between(torch.tensor([0.0, 0.5, 1.0]), -2, 4), torch.tensor([-2.0, 1.0, 4.0]))


class Elsewhere(torch.Tensor):
    """Tensor that says it is on an accelerator."""

    device = torch.device("cuda")


@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_apply_where_changes_the_masked_images_only(kind):
    images = torch.arange(4.0).view(4, 1, 1, 1).repeat(1, 1, 2, 2).as_subclass(kind)
    amounts = torch.tensor([10.0, 20.0, 30.0, 40.0])

    def add(chosen, rows):
        return chosen.add_(rows.view(-1, 1, 1, 1))

    for mask in ([True, False, True, False], [False] * 4, [True] * 4):
        result = apply_where_(torch.tensor(mask), add, images.clone(), amounts)
        expected = torch.arange(4.0) + amounts * torch.tensor(mask)
        assert torch.equal(result, expected.view(4, 1, 1, 1).expand(4, 1, 2, 2))
