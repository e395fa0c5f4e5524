import pytest
import torch
from torch import Tensor, nn

from linear_eval.layer_outputs import layer_outputs


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def test_outputs_are_averaged_over_positions_whatever_the_batch() -> None:
    encoder = nn.Sequential(nn.ReLU(), Tokens(), nn.Dropout(0.9), nn.Flatten())
    images = torch.arange(-4.0, 20.0).reshape(3, 2, 2, 2)
    layers = {"map": encoder[0], "tokens": encoder[2], "flat": encoder[3]}
    for batch in (1, 2, 64):
        maps, tokens, flat = layer_outputs(encoder, layers, images, batch)
        assert maps.tolist() == tokens.tolist() == [[0.0, 1.5], [5.5, 9.5], [13.5, 17.5]]
        assert flat.shape == (3, 8)
    assert encoder.training
    assert not encoder[0]._forward_hooks


def test_a_hook_does_not_outlive_an_error() -> None:
    encoder = nn.Sequential(nn.Flatten(0))
    with pytest.raises(ValueError, match="layer all must give"):
        layer_outputs(encoder, {"all": encoder[0]}, torch.zeros(2, 3))
    assert not encoder[0]._forward_hooks
