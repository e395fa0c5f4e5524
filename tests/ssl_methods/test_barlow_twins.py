import copy
import functools

import pytest
import torch
from torch import nn

from layerwise import LayerWise, split_encoder
from ssl_methods import BarlowTwins, TwoViews


class Points(nn.Module):
    """An encoder that hands its input on."""

    feature_dim = 2

    def forward(self, points):
        return points


SQUARE = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
"""Two uncorrelated dimensions with mean 0 and variance 1."""


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (SQUARE, 0.0),
        (3 * SQUARE + 7, 0.0),  # correlations know neither scale nor mean
        (-SQUARE, 2 * 2.0**2),
        (SQUARE.flip(1), 2 * 1.0 + 0.1 * 2 * 1.0),  # C = [[0, 1], [1, 0]]
        (SQUARE[:, :1].expand(4, 2), 0.0 + 1.0 + 0.1 * (1.0 + 0.0)),  # C = [[1, 1], [0, 0]]
    ],
)
def test_loss_by_hand(objective, second, expected):
    method = objective(BarlowTwins, Points(), redundancy=0.1)
    method.projector = nn.Identity()
    output = method.step((SQUARE, second))
    torch.testing.assert_close(output.loss, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_the_frozen_prefix_changes_neither_loss_nor_gradient(encoder, objective, images):
    model, stage = encoder("vit_avg").double(), LayerWise().stages(4, 4)[1]
    views = tuple(view.double() for view in TwoViews(flip=0.5)(images(6), torch.Generator().manual_seed(1)))
    method = objective(BarlowTwins, model).double()
    whole, projector = copy.deepcopy(model), copy.deepcopy(method.projector)
    method.attach(*split_encoder(model, stage))
    loss = method.loss_of(views)
    loss.backward()

    def features(images):
        hidden = whole.blocks[1](whole.blocks[0](whole.stem(images)))
        return projector(whole.reshape[1](whole.tail(hidden)))

    expected = method.loss(*map(features, views))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for own, full in ((model.blocks[1], whole.blocks[1]), (method.projector, projector)):
        for a, b in zip(own.parameters(), full.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    assert all(parameter.grad is None for parameter in method.prefix.parameters())


def test_gradient_steps_lower_the_loss(encoder, objective, images):
    method = objective(BarlowTwins, encoder())
    batch, optimizer = images(16), method.configure_optimizers()

    def loss(seed):
        method.generator.manual_seed(seed)
        return method.training_step(batch)

    before = loss(99).item()
    for seed in range(25):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    assert loss(99).item() < 0.9 * before


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"redundancy": -1.0}, "redundancy must be at least 0"), ({"output_dim": 0}, "output_dim must be at least 1")],
)
def test_settings_out_of_range_are_refused(encoder, objective, setting, message):
    with pytest.raises(ValueError, match=message):
        functools.partial(objective, BarlowTwins)(encoder(), **setting)
