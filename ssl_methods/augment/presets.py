"""Presets of ``TwoViews`` for kinds of images; they differ only in their defaults."""

from dataclasses import dataclass
from typing import Literal

from ssl_methods.augment.views import TwoViews


@dataclass(frozen=True, kw_only=True)
class NaturalViews(TwoViews):
    """Views of small colour photographs, in the manner of BYOL and MoCo v3.

    Crop, flip, jitter, grayscale and the asymmetric blur and solarisation are those of BYOL (Grill et al., 2020,
    appendix B) with a lower bound of 0.2 on the crop's area, as in MoCo v2. Deviations: blur of 0.1 to 1.0 pixels
    instead of 0.1 to 2.0, because these images are some 32 pixels wide and not 224; and values are normalised to [-1,
    1] with 0.5, which suits any channel count, instead of with the mean and deviation of a data set.
    """

    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = (0.1, 1.0)
    solarize: tuple[float, float] = (0.0, 0.2)


@dataclass(frozen=True, kw_only=True)
class DigitsViews(TwoViews):
    """Views of written digits and similar grey drawings on black: small affine motions, brightness and noise.

    Flips and crops are left out, because they change the meaning of a digit. Black surrounds the image. Values are
    normalised to [-1, 1].
    """

    rotation: float = 12.0
    shear: float = 8.0
    zoom: tuple[float, float] | None = (0.75, 1.15)
    shift: float = 0.12
    padding: Literal["zeros", "border"] = "zeros"
    brightness: float = 0.3
    noise: float = 0.05


@dataclass(frozen=True, kw_only=True)
class MedicalViews(TwoViews):
    """Views of medical images, grey or colour: mild crops, both flips and light jitter.

    Colour and intensity carry meaning here, so grayscale, solarisation and blur are off, and the crop keeps at least
    half of the area. Values are normalised to [-1, 1].
    """

    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    flip: float = 0.5
    vertical_flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.1
    hue: float = 0.02
    jitter_probability: float = 0.8
