"""Colour operations on float images in [0, 1], each image with its own parameter.

Meaning and weights follow torchvision's functional operations of the same names. A trailing underscore marks operations
that overwrite their images and return them: fresh memory costs more time than the arithmetic. Saturation and hue leave
images with one channel unchanged.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.2989, 0.587, 0.114)


def apply_where_(mask: Tensor, operation: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """Apply an operation to the masked images only.

    Args:
        mask: bool (B,).
        operation: Called with the chosen images and the chosen rows of each parameter; may overwrite them.
        images: (B, C, H, W), overwritten.
        parameters: Tensors with B rows.

    Returns:
        (B, C, H, W); images outside the mask keep their exact values.
    """
    if images.device.type != "cpu":
        # More arithmetic than for the chosen rows alone, but the host need not wait for their number.
        return torch.where(mask.view(-1, 1, 1, 1), operation(images.clone(), *parameters), images)
    chosen = mask.nonzero().squeeze(1)
    if len(chosen) == 0:
        return images
    rows = [each[chosen] for each in parameters]
    if len(chosen) == len(images):
        return operation(images, *rows)
    # Indexing with `images[chosen]` takes several times as long on CPUs.
    return images.index_copy_(0, chosen, operation(images.index_select(0, chosen), *rows))


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a few numbers in the type and on the device of a tensor, without waiting for the device."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def luminance(images: Tensor) -> Tensor:
    """Compute the perceived brightness, (B, C, H, W) -> (B, 1, H, W), a new tensor unless C is 1."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def adjust_brightness_(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each image (B, C, H, W) by its factor (B,) and clamp to [0, 1]."""
    return images.mul_(factors.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast_(images: Tensor, factors: Tensor) -> Tensor:
    """Move each image away from (factor above 1) or towards its mean luminance, clamped to [0, 1]."""
    factors = factors.view(-1, 1, 1, 1)
    means = luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factors).add_(means * (1 - factors)).clamp_(0, 1)


def adjust_saturation_(images: Tensor, factors: Tensor) -> Tensor:
    """Move each pixel away from (factor above 1) or towards its luminance, clamped to [0, 1]."""
    if images.shape[1] == 1:
        return images
    return images.lerp_(luminance(images), (1 - factors).view(-1, 1, 1, 1)).clamp_(0, 1)


def to_grayscale_(images: Tensor) -> Tensor:
    """Replace every channel by the luminance."""
    return images.copy_(luminance(images))


def adjust_hue_(images: Tensor, shifts: Tensor) -> Tensor:
    """Rotate the hue of each image by its fraction of a full turn, (B,) in [-0.5, 0.5].

    Value and chroma stay. The hue is that of the HSV model; the conversion back to colours uses one clipped triangle
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
    """Return the fraction of the chroma that each channel lacks, (B, 1, H, W) turns in (-1, 2) -> (B, 3, H, W).

    A channel lacks nothing in the third of the circle around its own hue and everything in the third opposite.
    """
    # Each channel's opposite hue moves to 1/3; the whole turn on top keeps fractions positive.
    offsets = constants((5 / 6, 3 / 6, 1 / 6), turns).view(3, 1, 1) + 1
    return (turns + offsets).frac_().sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)


def solarize_(images: Tensor) -> Tensor:
    """Invert every value of at least 0.5: take the smaller of a value and its inverse."""
    return torch.minimum(images, 1 - images, out=images)


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Apply a Gaussian blur to rows, then columns, reflecting at the edges.

    Each direction is one matrix product per image. That is more arithmetic than a convolution with a group per image
    and channel, yet several times faster for small images, as such convolutions reuse too little. The kernel ends where
    the weight falls below 1e-6 of the centre's, after some five standard deviations, or where reflection ends, one
    pixel short of the side's length.

    Args:
        images: (B, C, H, W).
        sigmas: Standard deviations in pixels, above 0, (B,).

    Returns:
        (B, C, H, W), a new tensor.
    """
    batch, channels, height, width = images.shape
    along_rows = blur_matrices(sigmas, width)
    along_columns = along_rows if height == width else blur_matrices(sigmas, height)
    blurred = images.reshape(batch, channels * height, width).bmm(along_rows.mT)
    return along_columns[:, None] @ blurred.view(images.shape)


def blur_matrices(sigmas: Tensor, size: int) -> Tensor:
    """Return weights (B, size, size) of a line's input pixels (last) in each of its output pixels; rows sum to 1.

    Reflection does not repeat the edge pixel, so an input pixel counts at its own place and at its mirror image beyond
    either end; the two end pixels have no image beyond their own end.
    """
    steps = torch.arange(size, device=sigmas.device)
    weights = torch.exp(-0.5 * (steps / sigmas[:, None]) ** 2)
    # Denormal numbers would slow CPUs down, hence the cut.
    weights = F.threshold(weights, 1e-6, 0.0)
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    both_ways = torch.cat([weights.flip(1), weights[:, 1:]], dim=1)
    matrices = both_ways.unfold(1, size, 1).flip(1)
    # Of input pixels 1, 2, ... the mirror images lie 1, 2, ... beyond the end.
    beyond = F.pad(weights, (0, size)).unfold(1, size, 1)[:, :size, 1:]
    matrices[:, :, 1:] += beyond
    matrices[:, :, :-1] += beyond.flip(1, 2)
    return matrices
