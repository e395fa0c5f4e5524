"""Checks of settings that are numbers, ranges or optimizers, called by the constructor of their owner."""

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


TEMPERATURES = (1e-3, 1e3)
"""Allowed temperatures: below, a softmax of cosines is a maximum; above, it is uniform."""

LARGEST = 2**53
"""Whole numbers above are not exact everywhere, and soon too large for tensors."""


def check_at_least(least: float, most: float = LARGEST, **settings: Any) -> None:
    """Refuse settings that are not finite numbers within limits.

    Args:
        least: Smallest number allowed.
        most: Largest number allowed.
        **settings: Settings by their names.

    Raises:
        ValueError: A setting is outside, not finite or no number.
    """
    for name, value in settings.items():
        number = isinstance(value, int | float)
        if not number or not least <= value <= most:
            # The upper bound is far away, and named only to those who exceed it.
            only_low = most == LARGEST and not (number and value > most)
            allowed = f"at least {least:g}" if only_low else f"from {least:g} to {most:g}"
            raise ValueError(f"{name} must be {allowed}, got {value}")


def check_bounded(name: str, value: float, most: float = 1.0) -> None:
    """Refuse numbers that are not finite or not in [0, most]."""
    if not (math.isfinite(value) and 0 <= value <= most):
        allowed = "a finite number of at least 0" if math.isinf(most) else f"between 0 and {most:g}"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_each_view(name: str, values: tuple[float, ...]) -> None:
    """Refuse anything but one probability for the first view and one for the second."""
    if len(values) != 2:
        raise ValueError(f"{name} must have one probability for each of the two views, got {values}")
    for value in values:
        check_bounded(name, value)


def check_range(name: str, values: tuple[float, ...] | None, most: float, optional: bool) -> None:
    """Refuse anything but a pair with 0 < low <= high <= most, both finite, and ``None`` where that is optional."""
    if values is None and not optional:
        raise ValueError(f"{name} must be (low, high), got None")
    if values is not None and (len(values) != 2 or not 0 < values[0] <= values[1] <= most or values[1] == math.inf):
        limit = "finite" if math.isinf(most) else f"<= {most:g}"
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, high {limit}, got {values}")


def check_channels(name: str, values: tuple[float, ...], positive: bool = False) -> None:
    """Refuse anything but one finite number for all channels, or three, optionally all above 0."""
    if len(values) not in (1, 3):
        raise ValueError(f"{name} must have 1 or 3 values, got {len(values)}: {values}")
    if not all(math.isfinite(value) and (value > 0 or not positive) for value in values):
        raise ValueError(f"{name} must be finite{' and above 0' if positive else ''}, got {values}")


def check_optimizer(name: str, factory: Any) -> Optimizer:
    """Refuse an optimizer that would not train, and return one over a parameter that nobody needs.

    Args:
        name: Name of the setting.
        factory: Maker of optimizers.

    Raises:
        ValueError: The optimizer would not move, would certainly diverge, or refuses its own settings.
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
