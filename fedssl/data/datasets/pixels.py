"""Conversion of pixels to uint8 of one square size (resizing, cropping, grey, RGB), for arrays and for image files."""

from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

# ITU-R 601 luma (0.299, 0.587, 0.114) in 16-bit fixed point as Pillow has it, so that arrays and files agree
LUMA = (19595, 38470, 7471)
CHUNK_BYTES = 32 * 2**20


def to_grey(images: Tensor) -> Tensor:
    """Convert RGB images uint8 (N, 3, H, W) to ITU-R 601 luma, uint8 (N, 1, H, W), rounded to nearest."""
    red, green, blue = (images[:, c].to(torch.int32) * weight for c, weight in enumerate(LUMA))
    return ((red + green + blue + 2**15) >> 16).to(torch.uint8).unsqueeze(1)


def square(images: np.ndarray, image_size: int, channels: int) -> Tensor:
    """Resize an array of images to one square size and number of channels.

    The shorter side is scaled (bilinear, antialiased) and the centre cut out, a chunk of images at a time.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3; may be a strided view or a memory map.
        image_size: Height and width of the result in pixels.
        channels: 1 or 3. Grey images become RGB as a view that stores one channel only.

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
        if min(chunk.shape[2:]) != image_size:
            chunk = F.resize(chunk, [image_size], antialias=True)
        result[start : start + step] = F.center_crop(chunk, [image_size])
    return result.expand(-1, channels, -1, -1)


def read_image(path: Path, image_size: int, channels: int) -> Tensor:
    """Decode an image file to uint8 (channels, image_size, image_size), scaled and cropped like ``square``.

    Large JPEG files are decoded at a reduced size first, which is several times faster and close to equal.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no readable 8-bit image; the message names it.
    """
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"mode {file.mode} has more than 8 bits a channel; convert it to 8 bits")
            file.draft(None, (image_size, image_size))  # JPEG: decode at 1/2, 1/4 or 1/8, not below
            image = file.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on broken files
        raise ValueError(f"{path} is not a readable image: {error}") from error
    return F.pil_to_tensor(F.center_crop(F.resize(image, [image_size]), [image_size]))


def image_files(folder: Path) -> list[Path]:
    """List the image files directly in ``folder``, sorted by name, without hidden ones; empty if it does not exist."""
    return [path for path in _entries(folder) if path.suffix.lower() in IMG_EXTENSIONS]


def images_below(folder: Path) -> list[Path]:
    """List the image files in ``folder``, then those of its subfolders at any depth, sorted by name in each."""
    return image_files(folder) + [path for inner in subfolders(folder) for path in images_below(inner)]


def subfolders(folder: Path) -> list[Path]:
    """List the folders directly in ``folder``, sorted by name, without hidden ones; empty if it does not exist."""
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    """List what lies in a folder; unlike ``Path.glob``, one that may not be read is an error and not empty."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
