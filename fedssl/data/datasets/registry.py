"""Registry of the data sets by name, and the function that loads any of them."""

from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch

from fedssl.data.datasets.arrays import DIGITS, FASHION_MNIST, MEMBER_AT_SIZE, MEMBERS, STL10, medmnist_loader
from fedssl.data.datasets.cifar import CIFAR10, CIFAR100
from fedssl.data.datasets.folders import FOLDER_LOADERS
from fedssl.data.datasets.pixels import AS_DEFAULT, Decoding, square
from fedssl.data.datasets.samples import ArrayImages, FileImages, ImageSet
from fedssl.data.datasets.source import YOUR_OWN, Arrays, Files, Loader
from fedssl.data.datasets.survey import survey

DATASETS: dict[str, Loader] = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "stl10": STL10,
    "fashion_mnist": FASHION_MNIST,
    **FOLDER_LOADERS,
    **{member: medmnist_loader(member) for member in MEMBERS},
}


def is_public(name: str) -> bool:
    """Return True for a data set that is public: neither a folder nor an npz file of the user's own."""
    return (name in DATASETS and name != "folder") or MEMBER_AT_SIZE.fullmatch(name) is not None


def find_loader(name: str) -> Loader:
    """Return the loader of a data set; raise ValueError with the nearest names for an unknown one."""
    if name in DATASETS:
        return DATASETS[name]
    stem = name.removeprefix("medmnist:")
    if (stem and stem != name) or MEMBER_AT_SIZE.fullmatch(name):
        return medmnist_loader(stem)
    near = get_close_matches(name.lower(), DATASETS, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    known = ", ".join(DATASETS)
    raise ValueError(f"unknown data set {name!r}: {hint}known are {known}, and medmnist:<name of an npz file>")


def load_images(
    name: str,
    split: str,
    root: str | Path,
    image_size: int | None = None,
    channels: int | None = None,
    in_memory: bool | None = None,
    download: bool = True,
    memory_limit: int = 4 * 2**30,
    loader: Loader | None = None,
    decoding: Decoding = AS_DEFAULT,
    max_bad_files: int = 0,
) -> ImageSet:
    """Load one split of a data set as uint8 images of one square size.

    Args:
        name: A key of ``DATASETS``, a member of MedMNIST with a size (``bloodmnist_64``), or ``medmnist:<stem>`` for a
            file ``<stem>.npz`` of MedMNIST's form.
        split: "train" or "test"; some have more ("val" in MedMNIST, "unlabeled" in STL-10 and COCO).
        root: Folder of all data sets.
        image_size: Height and width in pixels; None is the data set's own size.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB); None is the data set's own, 3 for image files.
        in_memory: True decodes all files now, False when they are asked for, None decodes now if the pixels fit into
            ``memory_limit``. Data sets that are stored as arrays can only be held in memory.
        download: Allow the download of an absent data set, where it can be downloaded.
        memory_limit: Limit in bytes, used if ``in_memory`` is None.
        loader: Reader of the data set; None is the one that ``name`` is registered with.
        decoding: How images of any form become 8 bits and a square.
        max_bad_files: Largest number of the user's own files that are left out because they cannot be read.

    Raises:
        ValueError: An argument is not allowed, a file is damaged, or the split has no images.
        FileNotFoundError: A file is absent and could not be downloaded; the message tells where to get it.
    """
    loader = loader or find_loader(name)
    if split not in loader.splits:
        raise ValueError(f"split {split!r} of {name} does not exist: allowed are {', '.join(loader.splits)}")
    if image_size is not None and image_size <= 0:
        raise ValueError(f"image_size must be positive, got {image_size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    root = Path(root).expanduser().absolute()
    found: Arrays | Files = loader.load(root, split, download)
    size, channels, said = image_size or found.image_size, channels or found.channels, ""
    if isinstance(found, Files) and not is_public(name):
        found, said = survey(found, channels, decoding, max_bad_files)
    if len(found.labels) == 0:
        raise ValueError(f"split {split!r} of {name} has no images under {root}" + (said and f" ({said}). {YOUR_OWN}"))
    if size is None:
        raise ValueError(f"{name} has images of different sizes: set --data.image_size")
    needed = len(found.labels) * min(channels, found.channels) * size**2
    in_memory = needed <= memory_limit if in_memory is None else in_memory
    labels = torch.from_numpy(np.asarray(found.labels, np.int64))
    if isinstance(found, Files):
        files: ImageSet = FileImages(name, found.paths, labels, found.classes, size, channels, decoding)
        paths = files.paths
        if in_memory:
            files = ArrayImages(name, files.gather(torch.arange(len(files))), labels, found.classes)
        files.paths, files.holders, files.account = paths, found.holders, said
        return files
    if not in_memory:
        raise ValueError(
            f"{name} is stored as arrays and can only be held in memory, {needed} bytes at {size}x{size}: choose a "
            f"smaller image_size, raise memory_limit {memory_limit} or set in_memory=True"
        )
    return ArrayImages(name, square(found.images, size, channels, decoding), labels, found.classes)
