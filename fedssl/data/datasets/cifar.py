"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): colour images of 32x32 in 10 or 100 classes."""

import lzma
import pickle
import sys
import tarfile
import tempfile
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets as tv
from torchvision.datasets.utils import check_integrity

from fedssl.data.datasets.source import Arrays, Loader, Source

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
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


def read_cifar(dataset: type[tv.CIFAR10], root: Path, split: str, download: bool) -> Arrays:
    """Read CIFAR from torchvision's folder below ``root``, from an archive there, or download it.

    Unlike torchvision, this reader accepts batches whose checksums differ from the official ones, with a warning.

    Args:
        dataset: torchvision's ``CIFAR10`` or ``CIFAR100``, which names the files.
        root: Folder with ``cifar-10-batches-py`` (``cifar-100-python``) or its ``.tar.gz`` or ``.tar.xz`` archive,
            which is unpacked beside itself.
        split: "train" or "test".
        download: Allow the download of absent files.

    Raises:
        FileNotFoundError: Files are absent and cannot be downloaded or unpacked.
        ValueError: A file is damaged.
    """
    folder = root / dataset.base_folder
    archives = [root / f"{dataset.filename.removesuffix('.gz')}.{end}" for end in ("gz", "xz")]
    source = Source(dataset.__name__, PAGE, f"{folder.name}/*, or {' or '.join(path.name for path in archives)}")
    if not folder.is_dir():
        lying_there = [path for path in archives if path.is_file()]
        if lying_there:
            unpack(lying_there[0], folder, source)
        else:
            source.fetch(folder, root, download, lambda: dataset(str(root), download=True))
    batches = dataset.train_list if split == "train" else dataset.test_list
    md5s = {folder / name: md5 for name, md5 in batches}
    names = folder / dataset.meta["filename"]
    check_files({**md5s, names: dataset.meta["md5"]}, root, source)
    images, labels = zip(*(unpickle(path, ("data",), ("labels", "fine_labels")) for path in md5s), strict=True)
    (classes,) = unpickle(names, (dataset.meta["key"],))
    return Arrays(np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels), classes)


def check_files(md5s: dict[Path, str], root: Path, source: Source) -> None:
    """Raise FileNotFoundError for an absent file, and warn of files that differ from the official bytes."""
    for path in md5s:
        if not path.is_file():
            raise source.missing(path, root, f"{path.parent.name} is incomplete")
    other = [path.name for path, md5 in md5s.items() if not check_integrity(path, md5)]
    if other:
        message = f"not the official bytes, read as they are: {', '.join(other)} in {next(iter(md5s)).parent}"
        warnings.warn(f"{source.title}: {message}", stacklevel=4)


def unpickle(path: Path, *keys: tuple[str, ...]) -> tuple[Any, ...]:
    """Read from a pickled dictionary, for each of ``keys``, the first of these names that it has.

    Raises:
        ValueError: The file is damaged or holds more than plain data; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = PlainUnpickler(file, encoding="latin1").load()
        return tuple(next(content[name] for name in names if name in content) for names in keys)
    except Exception as error:  # a damaged pickle raises nearly any type
        raise ValueError(f"{path} is not a readable CIFAR file: {error!r}") from error


def unpack(archive: Path, folder: Path, source: Source) -> None:
    """Unpack ``folder`` from the archive beside it: whole or not at all, also if two processes do so."""
    try:
        scratch = tempfile.TemporaryDirectory(dir=folder.parent)
    except OSError as error:
        reason = f"{archive.name} is there but the root is not writable; unpack it elsewhere, use that as root"
        raise source.missing(folder, folder.parent, reason) from error
    print(f"unpacking {archive}", file=sys.stderr)
    with scratch as inside:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(inside, filter="data")
            Path(inside, folder.name).rename(folder)
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            if not folder.is_dir():  # otherwise another process was first
                raise ValueError(f"{archive} cannot be unpacked, is it complete? {error}") from error


CIFAR10 = Loader(partial(read_cifar, tv.CIFAR10))
CIFAR100 = Loader(partial(read_cifar, tv.CIFAR100))
