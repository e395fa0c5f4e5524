"""Crop, flip and affine motion as one matrix per image and one bilinear resampling.

All matrices map output coordinates to input coordinates in the normalised frame of ``torch.nn.functional.grid_sample``
without aligned corners: x and y run from -1 to 1 between the outer edges.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def between(unit: Tensor, low: float, high: float) -> Tensor:
    """Map uniform numbers in [0, 1) to uniform numbers in [low, high)."""
    return low + (high - low) * unit


def crop_boxes(
    area: Tensor,
    ratio: Tensor,
    top: Tensor,
    left: Tensor,
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio_range: tuple[float, float],
) -> Tensor:
    """Compute boxes of random resized crops (Szegedy et al., "Going deeper with convolutions", 2015, section 6).

    The share of the image's area is uniform in ``scale``, the aspect ratio (width over height, in pixels) log-uniform
    in ``ratio_range``, and the place uniform. Deviations from torchvision: a ratio whose box would not fit is clamped
    to the nearest one that does, instead of drawn again up to ten times, so that the area is exactly uniform and the
    number of draws fixed; and boxes have fractional pixels.

    Args:
        area: Uniform draws in [0, 1) for the area, (B,).
        ratio: Uniform draws for the aspect ratio, (B,).
        top: Uniform draws for the vertical place, (B,).
        left: Uniform draws for the horizontal place, (B,).
        image_size: Height and width in pixels.
        scale: Smallest and largest share of the area.
        ratio_range: Smallest and largest aspect ratio.

    Returns:
        Boxes (B, 4): top, left, height, width in pixels.
    """
    image_height, image_width = image_size
    pixels = between(area, *scale) * image_height * image_width
    aspect = between(ratio, math.log(ratio_range[0]), math.log(ratio_range[1])).exp()
    aspect = aspect.clamp(pixels / image_height**2, image_width**2 / pixels)
    # Rounding may carry a full-size box over the edge, and its place would become negative.
    width = (pixels * aspect).sqrt().clamp_max(image_width)
    height = (pixels / aspect).sqrt().clamp_max(image_height)
    return torch.stack([top * (image_height - height), left * (image_width - width), height, width], dim=1)


def crop_matrices(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return matrices (B, 3, 3) that stretch each box, (B, 4) as from ``crop_boxes``, over the whole output."""
    image_height, image_width = image_size
    top, left, height, width = boxes.unbind(1)
    matrices = torch.eye(3, device=boxes.device).repeat(len(boxes), 1, 1)
    matrices[:, 0, 0] = width / image_width
    matrices[:, 1, 1] = height / image_height
    matrices[:, 0, 2] = (2 * left + width) / image_width - 1
    matrices[:, 1, 2] = (2 * top + height) / image_height - 1
    return matrices


def flip_matrices(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that mirror left-right and top-bottom where the masks (B,) are set."""
    flipped = torch.stack([horizontal, vertical, torch.zeros_like(horizontal)], dim=1)
    return torch.diag_embed(1.0 - 2.0 * flipped.float())


def affine_matrices(
    angle: Tensor, shear: Tensor, zoom: Tensor, shift_x: Tensor, shift_y: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Return matrices that shear along x, enlarge and rotate about the centre, then shift.

    Signs and order are those of ``torchvision.transforms.functional.affine``, with fractional shifts.

    Args:
        angle: Degrees, positive is clockwise, (B,).
        shear: Degrees, (B,).
        zoom: Factor; above 1 the content grows, (B,).
        shift_x: Share of the width, positive is right, (B,).
        shift_y: Share of the height, positive is down, (B,).
        image_size: Height and width in pixels; rotation preserves angles on images that are not square.

    Returns:
        Matrices (B, 3, 3).
    """
    image_height, image_width = image_size
    cos, sin, slope = angle.deg2rad().cos(), angle.deg2rad().sin(), shear.deg2rad().tan()
    # Inverse of the forward motion, because the resampling asks where each output pixel comes from.
    xx, xy = (cos - slope * sin) / zoom, (sin + slope * cos) / zoom * (image_height / image_width)
    yx, yy = -sin / zoom * (image_width / image_height), cos / zoom
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    x_offset = -2 * (xx * shift_x + xy * shift_y)
    y_offset = -2 * (yx * shift_x + yy * shift_y)
    rows = [xx, xy, x_offset, yx, yy, y_offset, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def resample(images: Tensor, matrices: Tensor, padding: str) -> Tensor:
    """Resample each image once, bilinearly, at the places of its matrix.

    No low-pass filter precedes the sampling, so a view that shrinks its content aliases slightly. A crop blends with
    the true neighbours of its box at its edge, where torchvision repeats the box's edge.

    Args:
        images: float images (B, C, H, W).
        matrices: Maps from output to input coordinates, (B, 3, 3).
        padding: Content outside of the image, "zeros" (black) or "border" (the nearest edge pixel).

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[2:]
    x, y = (_pixel_centres(size, matrices) for size in (width, height))
    # Outer sums instead of `affine_grid`, which multiplies matrices and takes longer than the sampling.
    from_x = matrices[:, :2, 0, None] * x + matrices[:, :2, 2, None]
    from_y = matrices[:, :2, 1, None] * y
    grid = from_x.mT[:, None] + from_y.mT[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _pixel_centres(size: int, like: Tensor) -> Tensor:
    return (2 * torch.arange(size, device=like.device, dtype=like.dtype) + 1) / size - 1
