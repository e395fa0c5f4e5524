"""Random numbers behind one view: a fixed set per image, independent of the augmentations in use."""

from collections import namedtuple
from collections.abc import Callable

import torch
from torch import Tensor

UnitDraws = namedtuple(
    "UnitDraws",
    "crop_area crop_ratio crop_top crop_left flip vertical_flip rotation shear zoom shift_x shift_y jitter brightness "
    "contrast saturation hue grayscale blur blur_sigma solarize",
)
"""Uniform numbers in [0, 1), one (B,) tensor per random decision of a view."""


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
