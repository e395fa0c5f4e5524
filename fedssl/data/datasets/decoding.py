"""Decoding of an image file: upright, on a background, 8 bits, grey or colour, square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from fedssl.data.datasets.dicom import DICOM, open_dicom
from fedssl.data.datasets.pixels import AS_DEFAULT, FITS, Decoding

FULL_RANGE = (2.0**15, 2.0**16)
"""Level and width of the window on all values of 16 bits."""
ORIENTATION = 0x0112
"""EXIF tag of the side of an image that is up."""


def read_image(path: Path, image_size: int, channels: int, decoding: Decoding = AS_DEFAULT) -> Tensor:
    """Decode an image file, of several frames the first, to uint8 (channels, image_size, image_size).

    Large JPEG files are decoded at a reduced size first, which is several times faster and close to equal.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no readable image; the message names it.
    """
    try:
        with open_image(path, decoding) as file:
            file.draft(None, (image_size, image_size))  # JPEG: decode at 1/2, 1/4 or 1/8, not below
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            image = _on_background(_to_8_bits(file, decoding), decoding.level)
            image = image.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on broken files
        raise unreadable(path, error) from error
    return F.pil_to_tensor(decoding.to_square(image, image_size))


def changes_of(path: Path, channels: int, decoding: Decoding, whole: bool) -> list[str]:
    """Tell from its header what decoding changes in an image.

    Args:
        path: Image file.
        channels: 1 or 3, which it will have.
        decoding: How it will be decoded.
        whole: Decode it all, which finds files that are cut off.

    Raises:
        ValueError: The file is no readable image, or does not exist; the message names it.
    """
    try:
        with open_image(path, decoding) as file:
            changes = _changes(file, "L" if channels == 1 else "RGB", decoding)
            if whole:
                file.load()
            return changes
    except Exception as error:
        raise unreadable(path, error) from error


def open_image(path: Path, decoding: Decoding) -> Image.Image:
    """Open an image file; its pixels are read later.

    Raises:
        ValueError: Its values have no known range.
    """
    image = open_dicom(path, decoding.window) if path.suffix.lower() == ".dcm" else Image.open(path)
    if image.mode in ("I", "F") and not decoding.window and not is_deep(image):
        raise ValueError(f"mode {image.mode} has values of no known range: set --data.window")
    return image


def is_deep(image: Image.Image) -> bool:
    """Tell if an image is grey with 16 bits a pixel; earlier versions of Pillow read such PNG files as 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def unreadable(path: Path, error: Exception) -> ValueError:
    """Return the error of a file that is no image, without the path that Pillow repeats."""
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error).replace(f" {str(path)!r}", "")
    return ValueError(f"{path} is not a readable image: {reason}")


def _changes(image: Image.Image, mode: str, decoding: Decoding) -> list[str]:
    changes = []
    if image.format == DICOM:
        changes.append("converted from DICOM")
    elif image.mode[0] in "IF":
        changes.append(f"converted from more than 8 bits{'' if decoding.window else _of_full_range(image)}")
    elif _is_transparent(image):
        changes.append(f"converted from {image.mode} on {decoding.background}")
    elif image.mode != mode:
        changes.append(f"converted from {image.mode} to {mode}")
    # To look for the tag in a PNG that has none would decode all of it.
    tagged = image.format != "PNG" or "exif" in image.info
    if tagged and image.getexif().get(ORIENTATION, 1) in range(2, 9):
        changes.append("turned by EXIF")
    if image.width != image.height:
        changes.append(f"{FITS[decoding.fit]} to a square")
    if getattr(image, "is_animated", False):
        changes.append("of several frames, of which the first is read")
    return changes


def _of_full_range(image: Image.Image) -> str:
    dark = np.asarray(image).max() < 2**15
    return ", dark because the upper ones are empty: set --data.window" if dark else ""


def _to_8_bits(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Map the values of a window to 0 to 255; images of 8 bits stay as they are."""
    if image.mode[0] not in "IF":
        return image
    level, width = decoding.window or FULL_RANGE
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    return Image.fromarray(np.clip((values - level) * (255 / width) + 127.5, 0, 255).round().astype(np.uint8))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _on_background(image: Image.Image, level: int) -> Image.Image:
    """Lay a transparent image on a grey level; others stay as they are."""
    if not _is_transparent(image):
        return image
    ground = Image.new("RGBA", image.size, (level, level, level, 255))
    ground.alpha_composite(image.convert("RGBA"))
    return ground
