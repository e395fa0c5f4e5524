"""Two independently augmented views of a batch of images."""

import math
from collections import namedtuple
from dataclasses import dataclass
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from ssl_methods.augment import color
from ssl_methods.augment.geometry import affine_matrices, between, crop_boxes, crop_matrices, flip_matrices, resample
from ssl_methods.setting_checks import check_bounded, check_channels, check_each_view, check_range

LARGEST = {
    **dict.fromkeys(("flip", "vertical_flip", "jitter_probability", "grayscale", "shift"), 1.0),
    **dict.fromkeys(("brightness", "contrast", "saturation", "noise"), math.inf),
    "rotation": 180.0,
    "shear": 80.0,
    "hue": 0.5,
}
"""Largest value of each setting that is one number of at least 0."""
LARGEST_RANGES = {"crop_scale": 1.0, "crop_ratio": math.inf, "zoom": math.inf, "blur_sigma": math.inf}

JITTER = {
    "brightness": color.adjust_brightness_,
    "contrast": color.adjust_contrast_,
    "saturation": color.adjust_saturation_,
    "hue": color.adjust_hue_,
}
"""Changes of colour in the order in which they are made."""


UnitDraws = namedtuple(
    "UnitDraws",
    "crop_area crop_ratio crop_top crop_left flip vertical_flip rotation shear zoom shift_x shift_y jitter brightness "
    "contrast saturation hue grayscale blur blur_sigma solarize",
)
"""Uniform numbers in [0, 1), one (B,) tensor per random decision of a view."""


def draw_units(count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> UnitDraws:
    """Draw all decisions for ``count`` images in one call on the generator's device, and move them to ``device``.

    The set is always complete, so switching one augmentation off leaves the others' numbers as they were.
    """
    decisions = len(UnitDraws._fields)
    units = torch.rand(decisions, count, generator=generator, device=generator.device)
    return UnitDraws(*units.to(device, non_blocking=True))


class Normalization:
    """Normalisation of uint8 images, the base of ``TwoViews``.

    ``TwoViews`` is a dataclass but this base is not, so that the command line lets a ``class_path`` choose a preset.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def plain(self, images: Tensor) -> Tensor:
        """Normalise without augmentation, for evaluation.

        Args:
            images: uint8 (B, C, H, W) with C 1 or 3.

        Returns:
            float32 (B, C, H, W).

        Raises:
            ValueError: The images are empty or of another type or shape, or do not fit ``mean`` and ``std``.
        """
        return self._normalize(self._to_unit_scale(images))

    def _to_unit_scale(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images must be a non-empty uint8 (B, C, H, W) with C 1 or 3, got {got}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, images.shape[1]):
                raise ValueError(f"{name} has {len(values)} values, but the images have {images.shape[1]} channels")
        return images.float().div_(255)

    def _normalize(self, pixels: Tensor) -> Tensor:
        mean, std = (color.constants(values, pixels).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean).div_(std)


Padding = Literal["zeros", "border"]


@dataclass(frozen=True, kw_only=True)
class TwoViews(Normalization):
    """Two random views of every image in a batch, each image with its own parameters.

    The order is crop, flip, affine motion (one bilinear resampling for the three), brightness, contrast, saturation,
    hue, grayscale, blur, solarisation, noise, normalisation. By default everything is off: a probability or amount of
    0, or None, switches an augmentation off.

    Deviations from torchvision: jitter has this fixed order, where torchvision draws one per image; for crops see
    ``crop_boxes``. Values stay float from the resampling on, without rounding to 8 bits.

    Args:
        mean: Mean that normalisation subtracts, on the scale 0..1; one value for all channels or one each.
        std: Deviation that normalisation divides by; one value for all channels or one each.
        crop_scale: Smallest and largest share of the area in a random resized crop, or None for no crop.
        crop_ratio: Smallest and largest aspect ratio (width over height) of the crop.
        flip: Probability of a left-right flip.
        vertical_flip: Probability of a top-bottom flip.
        rotation: Largest angle in degrees, uniform in both directions.
        shear: Largest angle of the shear along x in degrees, uniform in both directions.
        zoom: Smallest and largest factor of size, uniform, or None for no change.
        shift: Largest shift as a share of each side, uniform in both directions.
        padding: Content outside of the image: "border" repeats the edge pixels, "zeros" is black.
        brightness: Factor uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: Factor uniform in [max(0, 1 - contrast), 1 + contrast].
        saturation: Factor uniform in [max(0, 1 - saturation), 1 + saturation]; colour images only.
        hue: Shift uniform in [-hue, hue], in turns of the colour circle, at most 0.5; colour images only.
        jitter_probability: Probability that an image gets the four changes above.
        grayscale: Probability that colour is removed; colour images only.
        blur: Probability of Gaussian blur in the first and in the second view.
        blur_sigma: Smallest and largest standard deviation of the blur in pixels, uniform.
        solarize: Probability of inverting values of at least 0.5, in the first and in the second view.
        noise: Standard deviation of Gaussian pixel noise on the scale 0..1, to which the result is clamped.

    Raises:
        ValueError: A setting is outside of its range.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    vertical_flip: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    zoom: tuple[float, float] | None = None
    shift: float = 0.0
    padding: Padding = "border"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 1.0
    grayscale: float = 0.0
    blur: tuple[float, float] = (0.0, 0.0)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            check_bounded(name, getattr(self, name), most)
        for name in ("blur", "solarize"):
            check_each_view(name, getattr(self, name))
        for name, most in LARGEST_RANGES.items():
            check_range(name, getattr(self, name), most, optional=name in ("crop_scale", "zoom"))
        if self.padding not in get_args(Padding):
            raise ValueError(f"padding must be one of {', '.join(get_args(Padding))}, got {self.padding!r}")
        check_channels("mean", self.mean)
        check_channels("std", self.std, positive=True)

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the two views.

        Args:
            images: uint8 (B, C, H, W) with C 1 or 3.
            generator: Only source of randomness, best on the images' device; it advances by an amount that depends on
                B (and with noise on the images' shape), never on outcomes.

        Returns:
            Two normalised float32 tensors (B, C, H, W) on the images' device.

        Raises:
            ValueError: The images are empty or of another type or shape, or do not fit ``mean`` and ``std``.
        """
        first, second = self._views(images, (0, 1), generator)
        return first, second

    def first(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the first view only, for methods that compare no views; arguments and errors as for both."""
        (view,) = self._views(images, (0,), generator)
        return view

    def _views(self, images: Tensor, views: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
        """Draw all views as one batch, which takes half as many operations as one view after the other."""
        pixels = self._to_unit_scale(images)
        draws = [self._draw(images, generator) for _ in views]
        units = UnitDraws(*(torch.cat(unit) for unit in zip(*(units for units, _ in draws), strict=True)))
        # Mixed precision is for the network: in half precision the views would lose their last bits.
        with torch.autocast(images.device.type, enabled=False):
            # From here on the views own their pixels, and what follows overwrites them.
            pixels = self._move(pixels.repeat(len(views), 1, 1, 1), units)
            pixels = self._recolor_(pixels, units)
            pixels = self._degrade_(pixels, units, views)
            if self.noise > 0:
                noise = torch.cat([noise for _, noise in draws])
                pixels.add_(noise, alpha=self.noise).clamp_(0, 1)
            # Each view has memory of its own, so that it can be given back before the others.
            return [self._normalize(view) for view in pixels.chunk(len(views))]

    def _draw(self, images: Tensor, generator: torch.Generator) -> tuple[UnitDraws, Tensor]:
        """Draw the random numbers of one view: its decisions, and its noise (empty without noise)."""
        units, shape = draw_units(len(images), generator, images.device), images.shape if self.noise > 0 else 0
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return units, noise.to(images.device, non_blocking=True)

    def _move(self, pixels: Tensor, units: UnitDraws) -> Tensor:
        matrices = self._matrices(units, (pixels.shape[2], pixels.shape[3]))
        return pixels if matrices is None else resample(pixels, matrices, self.padding)

    def _matrices(self, units: UnitDraws, image_size: tuple[int, int]) -> Tensor | None:
        parts = []
        if self.crop_scale is not None:
            draws = (units.crop_area, units.crop_ratio, units.crop_top, units.crop_left)
            boxes = crop_boxes(*draws, image_size, scale=self.crop_scale, ratio_range=self.crop_ratio)
            parts.append(crop_matrices(boxes, image_size))
        if self.flip > 0 or self.vertical_flip > 0:
            parts.append(flip_matrices(units.flip < self.flip, units.vertical_flip < self.vertical_flip))
        if self.rotation > 0 or self.shear > 0 or self.zoom is not None or self.shift > 0:
            angle = between(units.rotation, -self.rotation, self.rotation)
            shear = between(units.shear, -self.shear, self.shear)
            zoom = between(units.zoom, *(self.zoom or (1.0, 1.0)))
            shift_x, shift_y = (between(unit, -self.shift, self.shift) for unit in (units.shift_x, units.shift_y))
            parts.append(affine_matrices(angle, shear, zoom, shift_x, shift_y, image_size))
        # The last motion's matrix is the rightmost: it meets the output coordinates first.
        return reduce(torch.matmul, parts) if parts else None

    def _recolor_(self, pixels: Tensor, units: UnitDraws) -> Tensor:
        factors = [
            between(getattr(units, name), max(0.0, 1 - getattr(self, name)), 1 + getattr(self, name))
            for name in ("brightness", "contrast", "saturation")
        ]
        shift = between(units.hue, -self.hue, self.hue)
        if any(getattr(self, name) > 0 for name in JITTER):
            pixels = color.apply_where_(units.jitter < self.jitter_probability, self._jitter_, pixels, *factors, shift)
        if self.grayscale > 0:
            pixels = color.apply_where_(units.grayscale < self.grayscale, color.to_grayscale_, pixels)
        return pixels

    def _jitter_(self, pixels: Tensor, *parameters: Tensor) -> Tensor:
        for (name, adjust_), parameter in zip(JITTER.items(), parameters, strict=True):
            if getattr(self, name) > 0:
                pixels = adjust_(pixels, parameter)
        return pixels

    def _degrade_(self, pixels: Tensor, units: UnitDraws, views: tuple[int, ...]) -> Tensor:
        def wanted(unit: Tensor, probabilities: tuple[float, float]) -> Tensor:
            parts = zip(unit.chunk(len(views)), views, strict=True)
            return torch.cat([part < probabilities[view] for part, view in parts])

        sigmas = between(units.blur_sigma, *self.blur_sigma)
        if any(self.blur[view] > 0 for view in views):
            pixels = color.apply_where_(wanted(units.blur, self.blur), color.gaussian_blur, pixels, sigmas)
        if any(self.solarize[view] > 0 for view in views):
            pixels = color.apply_where_(wanted(units.solarize, self.solarize), color.solarize_, pixels)
        return pixels
