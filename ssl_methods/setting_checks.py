"""Checks of settings that are numbers or optimizers, called by the constructor of their owner."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

SMALLEST_LR = torch.finfo(torch.float32).tiny
"""Less is nothing in the arithmetic of the weights."""

LARGEST_LR = 1e3
"""A step of a thousand times the gradient is a mistake in the exponent."""


LARGEST = 2**53
"""Whole numbers above are not exact everywhere, and soon too large for tensors."""


def check_at_least(least: float, most: float = LARGEST, **settings: Any) -> None:
    """Refuse settings that are not finite numbers within limits.

    Args:
        least: The smallest number allowed.
        most: The largest.
        **settings: By their names.

    Raises:
        ValueError: One is outside, not finite or no number.
    """
    for name, value in settings.items():
        number = isinstance(value, int | float)
        if not number or not least <= value <= most:
            only_low = most == LARGEST and not (number and value > most)
            allowed = f"at least {least:g}" if only_low else f"from {least:g} to {most:g}"
            raise ValueError(f"{name} must be {allowed}, got {value}")


def check_optimizer(name: str, factory: Any) -> Optimizer:
    """Refuse an optimizer that would not train, and return one over a parameter that nobody needs.

    Args:
        name: Of the setting.
        factory: Makes optimizers.

    Raises:
        ValueError: It would not move, or certainly diverge, or refuses its own settings.
    """
    try:
        optimizer: Optimizer = factory([nn.Parameter(torch.zeros(1, 1))])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    for group in optimizer.param_groups:
        lr, momentum = group.get("lr", 1), group.get("momentum", 0)
        if not SMALLEST_LR <= lr <= LARGEST_LR:
            raise ValueError(f"{name}.lr must be above 0 and at most {LARGEST_LR:g}, got {float(lr)}")
        if not 0 <= momentum < 1:
            raise ValueError(f"{name}.momentum must be at least 0 and below 1, got {momentum}")
        for key, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}.{key} must be finite, got {value}")
    return optimizer
