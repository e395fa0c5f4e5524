"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): colour images of 32x32 in 10 or 100 classes."""

import logging
import pickle
import shutil
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from torchvision.datasets.utils import check_integrity

from fedssl.data.datasets.source import Arrays, Loader

logger = logging.getLogger(__name__)
# what array pickles call; asked from NumPy because the modules were renamed in version 2
NUMPY_CALLS = {
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickler for arrays, lists and strings that refuses everything else: a pickle from elsewhere may run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in NUMPY_CALLS:
            return NUMPY_CALLS[name]
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def read_cifar(dataset: type[tv.CIFAR10], labels_key: str, root: Path, split: str) -> Arrays:
    """Read CIFAR from torchvision's folder below ``root``, or from an archive there, which is unpacked beside itself.

    Unlike torchvision, this reader runs no code from a file, and accepts files whose checksums differ from the official
    ones, with a warning.

    Args:
        dataset: torchvision's ``CIFAR10`` or ``CIFAR100``, which names the files.
        labels_key: Key of the labels in a batch.
        root: Folder with ``cifar-10-batches-py`` (``cifar-100-python``) or its ``.tar.gz`` or ``.tar.xz`` archive.
        split: "train" or "test".

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged, or an archive cannot be unpacked.
    """
    folder = root / dataset.base_folder
    for end in ("gz", "xz"):
        archive = root / f"{dataset.filename.removesuffix('gz')}{end}"
        if archive.is_file() and not folder.is_dir():
            unpack(archive, folder)
    names, batches = dataset.meta, dataset.train_list if split == "train" else dataset.test_list
    absent = [name for name, _ in [*batches, (names["filename"], "")] if not (folder / name).is_file()]
    if folder.is_dir() and absent:  # a download would replace the files that are there, which may be the user's own
        raise ValueError(f"{folder} is incomplete, without {', '.join(absent)}: add what is missing, or remove it")
    (classes,) = unpickle(folder / names["filename"], names["key"])
    images, labels = zip(*(unpickle(folder / name, "data", labels_key) for name, _ in batches), strict=True)
    official = [*dataset.train_list, *dataset.test_list, (names["filename"], names["md5"])]
    warn_of_other_bytes(dataset.__name__, folder, tuple((name, md5) for name, md5 in official))
    return Arrays(np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels), classes)


# Cached: the splits are read one after another, and their user shall be told once.
@cache
def warn_of_other_bytes(title: str, folder: Path, official: tuple[tuple[str, str], ...]) -> None:
    """Log which of the official files, each with its MD5, are there with other bytes."""
    there = [(folder / name, md5) for name, md5 in official if (folder / name).is_file()]
    if other := [path.name for path, md5 in there if not check_integrity(path, md5)]:
        logger.warning("%s: not the official bytes, read as they are: %s in %s", title, ", ".join(other), folder)


def unpickle(path: Path, *keys: str) -> list[Any]:
    """Return the values of ``keys`` in a pickled dictionary.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is damaged or holds more than plain data; the message names it.
    """
    with path.open("rb") as file:
        try:
            content = PlainUnpickler(file, encoding="latin1").load()
            return [content[key] for key in keys]
        except Exception as error:  # a damaged pickle raises nearly any type
            raise ValueError(f"{path} is not a readable CIFAR file: {error!r}") from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack ``folder`` from the archive beside it: whole or not at all, also if two processes do so.

    Raises:
        ValueError: The archive is damaged, or its folder not writable.
    """
    print(f"unpacking {archive}", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as inside:
            shutil.unpack_archive(archive, inside, filter="data")
            Path(inside, folder.name).rename(folder)
    except Exception as error:  # a damaged archive raises nearly any type
        if not folder.is_dir():  # otherwise another process was first
            raise ValueError(f"{archive} cannot be unpacked, is it whole and its folder writable? {error}") from error


def _loader(dataset: type[tv.CIFAR10], labels_key: str) -> Loader:
    return Loader(
        partial(read_cifar, dataset, labels_key),
        dataset.__name__,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        f"{dataset.base_folder}/*, or {dataset.filename} or {dataset.filename.removesuffix('gz')}xz",
        lambda root: dataset(str(root), download=True),
    )


CIFAR10 = _loader(tv.CIFAR10, "labels")
CIFAR100 = _loader(tv.CIFAR100, "fine_labels")
