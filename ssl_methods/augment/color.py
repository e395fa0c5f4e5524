"""Colour operations on float images in [0, 1], each image with its own parameter.

Meaning and weights follow torchvision's functional operations of the same names. As the trailing underscore
says, they overwrite their images, and return them: fresh memory costs more time than the arithmetic.
Saturation and hue leave images with one channel as they are.
"""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def luminance(images: Tensor) -> Tensor:
    """Perceived brightness, (B, C, H, W) -> (B, 1, H, W), a new tensor unless C is 1."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def adjust_brightness_(images: Tensor, factors: Tensor) -> Tensor:
    """Multiplies each image (B, C, H, W) by its factor (B,) and clamps to [0, 1]."""
    return images.mul_(factors.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast_(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each image away from (factor above 1) or towards its mean luminance, clamped to [0, 1]."""
    factors = factors.view(-1, 1, 1, 1)
    means = luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factors).add_(means * (1 - factors)).clamp_(0, 1)


def adjust_saturation_(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each pixel away from (factor above 1) or towards its luminance, clamped to [0, 1]."""
    if images.shape[1] == 1:
        return images
    return images.lerp_(luminance(images), (1 - factors).view(-1, 1, 1, 1)).clamp_(0, 1)


def to_grayscale_(images: Tensor) -> Tensor:
    """Replaces every channel by the luminance."""
    return images.copy_(luminance(images))


def adjust_hue_(images: Tensor, shifts: Tensor) -> Tensor:
    """Turns the hue of each image by its share of a full turn, (B,) in [-0.5, 0.5].

    Value and chroma stay. The hue is that of the HSV model; the way back to colours uses one clipped triangle
    wave per channel, which equals the usual table of six sectors.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Hue in sixths of a turn times chroma, by the channel on top. Weights of 0 and 1 stand in for `torch.where`, which
    # is many times slower on CPUs, as is the way to them through `bool`.
    top_red, top_green = (torch.eq(value, each, out=torch.empty_like(value)) for each in (red, green))
    hue = (red - green).add_(chroma, alpha=4).lerp_((blue - red).add_(chroma, alpha=2), top_green)
    hue.lerp_(green - blue, top_red)
    # Grey pixels have no hue; with a chroma of 0 any finite one gives grey again.
    turns = hue.div_((6 * chroma).clamp_min_(torch.finfo(images.dtype).tiny)).add_(shifts.view(-1, 1, 1, 1))
    return torch.sub(value, _lacking(turns).mul_(chroma), out=images)


def _lacking(turns: Tensor) -> Tensor:
    """Share of the chroma that each channel lacks, (B, 1, H, W) turns in (-1, 2) -> (B, 3, H, W).

    A channel lacks nothing in the third of the circle around its own hue and everything in the third
    opposite.
    """
    # Each channel's opposite hue moves to 1/3; the whole turn on top keeps fractions positive.
    offsets = turns.new_tensor([5 / 6, 3 / 6, 1 / 6]).view(3, 1, 1) + 1
    return (turns + offsets).frac_().sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)


def solarize_(images: Tensor) -> Tensor:
    """Inverts every value of at least 0.5: takes the smaller of a value and its inverse."""
    return torch.minimum(images, 1 - images, out=images)
