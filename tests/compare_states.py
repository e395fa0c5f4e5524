"""How the tests compare the states of two runs."""

from typing import Any

import torch
from torch import Tensor


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bit-equal tensors and equal values, recursively; measured seconds aside."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for position, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{position}")
    else:
        assert a == b, where
