"""Pixels of one square size, uint8: how images get there, and the conversion of arrays."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor

# ITU-R 601 luma (0.299, 0.587, 0.114) in 16-bit fixed point as Pillow has it, so that arrays and files agree
LUMA = (19595, 38470, 7471)
CHUNK_BYTES = 32 * 2**20
FITS = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}
LEVELS = {"white": 255, "black": 0}

Pixels = TypeVar("Pixels", Tensor, Image.Image)


@dataclass(frozen=True)
class Decoding:
    """Conversion of images of any form to 8 bits and a square.

    Args:
        fit: ``crop`` scales the shorter side and cuts the centre out, ``pad`` scales the longer side and fills up with
            the background, ``stretch`` scales both.
        background: What is seen through transparent pixels, and around padded images.
        window: Level and width of the values that become black to white in images of more than 8 bits; ``None`` takes
            all 16 bits, and a DICOM file's own window.

    Raises:
        ValueError: An argument is not among those allowed.
    """

    fit: Literal["crop", "pad", "stretch"] = "crop"
    background: Literal["white", "black"] = "white"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("fit", FITS), ("background", LEVELS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"data.{name} must be {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.window and self.window[1] <= 0:
            raise ValueError(f"data.window is level and width, and the width above 0: got {list(self.window)}")

    @property
    def level(self) -> int:
        """Grey level of the background."""
        return LEVELS[self.background]

    def to_square(self, images: Pixels, image_size: int) -> Pixels:
        """Scale a Pillow image, or a tensor (..., H, W), to a square (bilinear, antialiased)."""
        if self.fit == "stretch":
            return F.resize(images, [image_size, image_size])
        sides = F.get_size(images)
        if self.fit == "crop":
            whole = images if min(sides) == image_size else F.resize(images, [image_size])
            return F.center_crop(whole, [image_size])
        height, width = (max(1, round(side * image_size / max(sides))) for side in sides)
        top, left = (image_size - height) // 2, (image_size - width) // 2
        borders = [left, top, image_size - width - left, image_size - height - top]
        return F.pad(F.resize(images, [height, width]), borders, fill=self.level)


AS_DEFAULT = Decoding()


def to_grey(images: Tensor) -> Tensor:
    """Convert RGB images uint8 (N, 3, H, W) to ITU-R 601 luma, uint8 (N, 1, H, W), rounded to nearest."""
    red, green, blue = (images[:, c].to(torch.int32) * weight for c, weight in enumerate(LUMA))
    return ((red + green + blue + 2**15) >> 16).to(torch.uint8).unsqueeze(1)


def square(images: np.ndarray, image_size: int, channels: int, decoding: Decoding = AS_DEFAULT) -> Tensor:
    """Resize an array of images to one square size and number of channels, a chunk of images at a time.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3; may be a strided view or a memory map.
        image_size: Height and width of the result in pixels.
        channels: 1 or 3. Grey images become RGB as a view that stores one channel only.
        decoding: How images that are not square become so.

    Returns:
        uint8 (N, channels, image_size, image_size).
    """
    stored = min(images.shape[1], channels)
    result = torch.empty(len(images), stored, image_size, image_size, dtype=torch.uint8)
    step = max(1, CHUNK_BYTES // max(int(np.prod(images.shape[1:])), stored * image_size**2))
    for start in range(0, len(images), step):
        chunk = torch.from_numpy(np.array(images[start : start + step]))
        if stored < chunk.shape[1]:
            chunk = to_grey(chunk)
        result[start : start + step] = decoding.to_square(chunk, image_size)
    return result.expand(-1, channels, -1, -1)
