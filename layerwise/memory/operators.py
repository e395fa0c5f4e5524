"""What the operators of torch declare about themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def storage_key(tensor: Tensor) -> int:
    """Identity of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that an operator writes to, one of each storage."""
    found: dict[int, Tensor] = {}
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor):
                found[storage_key(tensor)] = tensor
    return list(found.values())


def is_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers; attention without dropout, which only could, does not."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return given != 0
    return True


def is_mask(func: Any, masks: list[bool]) -> bool:
    """Whether an operator gives two values only: a Bernoulli draw, or a mask scaled by a number.

    Args:
        func: The operator.
        masks: Which of its inputs are masks.
    """
    name = func._schema.name
    if name in ("aten::bernoulli", "aten::bernoulli_"):
        return True
    scales = name in ("aten::div", "aten::div_", "aten::mul", "aten::mul_")
    return scales and masks == [True]
