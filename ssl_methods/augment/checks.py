"""Checks of augmentation settings; each returns the value that it accepts."""

import math


def bounded(name: str, value: float, high: float = math.inf) -> float:
    """A finite number in [0, high].

    Raises:
        ValueError: if it is outside, infinite or not a number.
    """
    if not (math.isfinite(value) and 0 <= value <= high):
        allowed = "a finite number of at least 0" if math.isinf(high) else f"between 0 and {high:g}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value


def probability(name: str, value: float) -> float:
    """A number in [0, 1], else `ValueError`."""
    return bounded(name, value, 1.0)


def probability_per_view(name: str, values: tuple[float, float]) -> tuple[float, float]:
    """One probability for the first view and one for the second, else `ValueError`."""
    if len(values) != 2:
        raise ValueError(f"{name} must have one probability for each of the two views, got {values}")
    return probability(name, values[0]), probability(name, values[1])


def positive_range(name: str, values: tuple[float, float], high: float = math.inf) -> tuple[float, float]:
    """A pair with 0 < low <= high bound, both finite, else `ValueError`."""
    limit = "finite" if math.isinf(high) else f"<= {high:g}"
    if len(values) != 2 or not (math.isfinite(values[1]) and 0 < values[0] <= values[1] <= high):
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, high {limit}, got {values}")
    return values[0], values[1]


def channel_values(name: str, values: tuple[float, ...], positive: bool = False) -> tuple[float, ...]:
    """One finite number for all channels or three, optionally all above 0, else `ValueError`."""
    if len(values) not in (1, 3):
        raise ValueError(f"{name} must have 1 or 3 values, got {len(values)}: {values}")
    if not all(math.isfinite(value) and (value > 0 or not positive) for value in values):
        raise ValueError(f"{name} must be finite{' and above 0' if positive else ''}, got {values}")
    return tuple(values)
