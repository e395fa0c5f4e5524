"""STL-10 (Coates et al. 2011): colour images of 96x96, 10 classes, and 100,000 without labels."""

from functools import partial
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from fedssl.data.datasets.source import Arrays, Loader, Source

SOURCE = Source(
    "STL-10",
    "https://cs.stanford.edu/~acoates/stl10/",
    "stl10_binary/{train_X,train_y,test_X,test_y,unlabeled_X}.bin",
)
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
IMAGE_BYTES = 3 * 96 * 96


def read_stl10(root: Path, split: str, download: bool) -> Arrays:
    """Map the binary file of a split into memory: 5,000 train, 8,000 test or 100,000 unlabelled images.

    Raises:
        FileNotFoundError: A file is absent and cannot be downloaded.
        ValueError: A file has the wrong length.
    """
    folder = root / "stl10_binary"
    pixels, numbers = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
    wanted = [pixels] if split == "unlabeled" else [pixels, numbers]
    absent = [path for path in wanted if not path.is_file()]
    if absent:
        SOURCE.fetch(absent[0], root, download, partial(tv.STL10, str(root), download=True))
    size = pixels.stat().st_size
    if size == 0 or size % IMAGE_BYTES:
        raise ValueError(f"{pixels} has {size} bytes, not a positive multiple of {IMAGE_BYTES}")
    # planes are stored column by column
    images = np.memmap(pixels, np.uint8, mode="r").reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    if split == "unlabeled":
        return Arrays(images, np.full(len(images), -1), ())
    labels = np.fromfile(numbers, np.uint8).astype(np.int64) - 1
    if len(labels) != len(images) or not ((labels >= 0) & (labels < 10)).all():
        raise ValueError(f"{numbers} must hold {len(images)} labels from 1 to 10")
    return Arrays(images, labels, CLASSES)


STL10 = Loader(read_stl10, ("train", "test", "unlabeled"))
