"""Random numbers behind one view: a fixed set per image, independent of the augmentations in use."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class UnitDraws(NamedTuple):
    """Uniform numbers in [0, 1), one (B,) tensor per random decision of a view."""

    crop_area: Tensor
    crop_ratio: Tensor
    crop_top: Tensor
    crop_left: Tensor
    flip: Tensor
    vertical_flip: Tensor
    rotation: Tensor
    shear: Tensor
    zoom: Tensor
    shift_x: Tensor
    shift_y: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grayscale: Tensor
    blur: Tensor
    blur_sigma: Tensor
    solarize: Tensor


def draw_units(count: int, generator: torch.Generator) -> UnitDraws:
    """Draw all decisions for ``count`` images in one call, on the generator's device.

    The set is always complete, so switching one augmentation off leaves the others' numbers as they were.
    """
    decisions = len(UnitDraws._fields)
    return UnitDraws(*torch.rand(decisions, count, generator=generator, device=generator.device))


def between(unit: Tensor, low: float, high: float) -> Tensor:
    """Map uniform numbers in [0, 1) to uniform numbers in [low, high)."""
    return low + (high - low) * unit


def apply_where_(mask: Tensor, operation: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """Apply an operation to the masked images only.

    Args:
        mask: bool (B,). On the CPU the choice needs no synchronisation with an accelerator.
        operation: Called with the chosen images and the chosen rows of each parameter; may overwrite them.
        images: (B, C, H, W), overwritten.
        parameters: Tensors with B rows, on the mask's device.

    Returns:
        (B, C, H, W); images outside the mask keep their exact values.
    """
    chosen = mask.nonzero().squeeze(1)
    if len(chosen) == 0:
        return images
    rows = [each[chosen].to(images.device) for each in parameters]
    if len(chosen) == len(images):
        return operation(images, *rows)
    chosen = chosen.to(images.device)
    # Indexing with `images[chosen]` takes several times as long on CPUs.
    return images.index_copy_(0, chosen, operation(images.index_select(0, chosen), *rows))


def bounded(name: str, value: float, high: float = math.inf) -> float:
    """Return the value if it is a finite number in [0, high].

    Raises:
        ValueError: The value is outside, infinite or not a number.
    """
    if not (math.isfinite(value) and 0 <= value <= high):
        allowed = "a finite number of at least 0" if math.isinf(high) else f"between 0 and {high:g}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value


def probability(name: str, value: float) -> float:
    """Return the value if it is in [0, 1]; raise ``ValueError`` otherwise."""
    return bounded(name, value, 1.0)


def probability_per_view(name: str, values: tuple[float, float]) -> tuple[float, float]:
    """Return one probability for the first view and one for the second; raise ``ValueError`` for other values."""
    if len(values) != 2:
        raise ValueError(f"{name} must have one probability for each of the two views, got {values}")
    return probability(name, values[0]), probability(name, values[1])


def positive_range(name: str, values: tuple[float, float], high: float = math.inf) -> tuple[float, float]:
    """Return a pair with 0 < low <= high bound, both finite; raise ``ValueError`` for other values."""
    limit = "finite" if math.isinf(high) else f"<= {high:g}"
    if len(values) != 2 or not (math.isfinite(values[1]) and 0 < values[0] <= values[1] <= high):
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, high {limit}, got {values}")
    return values[0], values[1]


def channel_values(name: str, values: tuple[float, ...], positive: bool = False) -> tuple[float, ...]:
    """Return one finite number for all channels, or three, optionally all above 0; raise ``ValueError`` otherwise."""
    if len(values) not in (1, 3):
        raise ValueError(f"{name} must have 1 or 3 values, got {len(values)}: {values}")
    if not all(math.isfinite(value) and (value > 0 or not positive) for value in values):
        raise ValueError(f"{name} must be finite{' and above 0' if positive else ''}, got {values}")
    return tuple(values)
