"""Yogi's step, by hand."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from fedssl.server.yogi import Yogi


def test_two_steps_by_hand() -> None:
    """Gradients 2 and 1 with betas 1/2 and 3/4 and an eps of 1.

    Step 1: m = 1, v = 1 - 4 / 4 x sign(1 - 4) = 2. Step 2: m = 1, v = 2 - 1 / 4 x sign(2 - 1) = 1.75.
    """
    weight, untouched = nn.Parameter(torch.tensor([10.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = Yogi([weight, untouched], lr=0.5, betas=(0.5, 0.75), eps=1.0)
    expected = 10.0
    for gradient, spread in ((2.0, 2.0), (1.0, 1.75)):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        expected -= 0.5 / (spread**0.5 + 1)
        assert weight.item() == pytest.approx(expected)
    assert untouched.item() == 1.0
    assert untouched not in optimizer.state


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"betas": (0.9, 1.0)}, "betas must be two numbers of at least 0 and below 1, got (0.9, 1.0)"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Yogi([nn.Parameter(torch.zeros(1))], **setting)
