"""Fashion-MNIST (Xiao et al. 2017): grey images of 28x28 in 10 classes, in IDX files."""

import gzip
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torchvision.datasets as tv

from fedssl.data.datasets.source import Arrays, Loader, Source

SOURCE = Source(
    "Fashion-MNIST",
    "https://github.com/zalandoresearch/fashion-mnist",
    "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, each also as .gz",
)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, packed with gzip if its name ends in .gz.

    Format: two zero bytes, type code 8, the number of axes, one big-endian uint32 an axis, the values.

    Raises:
        ValueError: The file is damaged or of another type; the message names it.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if data[:3] != b"\0\0\x08":
            raise ValueError(f"starts with {data[:3]!r}")
        axes = data[3]
        shape = np.frombuffer(data, ">u4", count=axes, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (gzip.BadGzipFile, EOFError, zlib.error, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not a readable IDX file of bytes: {error}") from error


def read_fashion_mnist(root: Path, split: str, download: bool) -> Arrays:
    """Read the IDX files in place, packed or not, without writing; download them if they are absent.

    Raises:
        FileNotFoundError: A file is absent and cannot be downloaded.
        ValueError: A file is damaged.
    """
    raw = root / "FashionMNIST" / "raw"
    stem = "train" if split == "train" else "t10k"
    wanted = [raw / f"{stem}-images-idx3-ubyte", raw / f"{stem}-labels-idx1-ubyte"]
    absent = [path for path in wanted if present(path) is None]
    if absent:
        SOURCE.fetch(absent[0], root, download, partial(tv.FashionMNIST, str(root), download=True))
    images, labels = (read_idx(present(path) or path) for path in wanted)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(f"{raw}: images {images.shape} and labels {labels.shape} do not belong together")
    return Arrays(images[:, None], labels, tv.FashionMNIST.classes)


def present(path: Path) -> Path | None:
    """Return the file itself, else its gzip, else None."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


FASHION_MNIST = Loader(read_fashion_mnist)
