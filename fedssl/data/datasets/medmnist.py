"""MedMNIST v2 (Yang et al. 2023) and npz files of the same form, read without the ``medmnist`` package."""

import importlib
import re
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from fedssl.data.datasets.source import Arrays, Loader, find

MEMBERS = (
    "bloodmnist", "breastmnist", "chestmnist", "dermamnist", "octmnist", "organamnist",
    "organcmnist", "organsmnist", "pathmnist", "pneumoniamnist", "retinamnist", "tissuemnist",
)  # fmt: skip
MEMBER_AT_SIZE = re.compile(rf"({'|'.join(MEMBERS)})(?:_(64|128|224))?")


def medmnist_loader(stem: str) -> Loader:
    """Return the loader of ``<stem>.npz``: a member of MedMNIST, one at another size, or any file of this form."""
    read, download = partial(read_medmnist, stem), partial(download_member, stem)
    layout = f"{stem}.npz or medmnist/{stem}.npz"
    return Loader(read, f"MedMNIST {stem}", "https://medmnist.com", layout, download, ("train", "val", "test"))


def read_medmnist(stem: str, root: Path, split: str) -> Arrays:
    """Read ``<stem>.npz`` from ``root`` or ``root/medmnist``.

    Keys: ``<split>_images`` uint8 (N, H, W) or (N, H, W, 3) and ``<split>_labels`` (N, 1). The file stores no class
    names: classes are numbered over all its splits. Tasks with several labels an image (chestmnist) become unlabelled
    (-1), with a warning.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is damaged or of another form.
    """
    path = find(root / f"{stem}.npz", root / "medmnist" / f"{stem}.npz")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            images = file[f"{split}_images"]
            labels = {key: file[key] for key in file.files if key.endswith("_labels")}
            chosen = labels[f"{split}_labels"]
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"{path}: images must be uint8 (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}")
    if len(chosen) != len(images):
        raise ValueError(f"{path}: {split} has {len(images)} images and {len(chosen)} labels")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if chosen.ndim == 2 and chosen.shape[1] > 1:
        warnings.warn(f"{path}: {chosen.shape[1]} labels an image; used as unlabelled images", stacklevel=4)
        return Arrays(images, np.full(len(chosen), -1), [])
    classes = [str(c) for c in range(number_of_classes(path, labels))]
    return Arrays(images, chosen.ravel().astype(np.int64), classes)


def number_of_classes(path: Path, labels: dict[str, np.ndarray]) -> int:
    """Return the number of classes over all splits, from their highest label.

    Raises:
        ValueError: Labels are no whole numbers, or imply more classes than images.
    """
    for key, values in labels.items():
        if values.dtype.kind not in "iuf" or not (np.isfinite(values) & (values == np.floor(values))).all():
            raise ValueError(f"{path}: {key} must be whole numbers, the classes from 0")
    classes = max((int(values.max()) for values in labels.values() if values.size), default=-1) + 1
    images = sum(len(values) for values in labels.values())
    if classes > images:
        raise ValueError(f"{path}: labels go up to {classes - 1}, but there are {images}: number the classes from 0")
    return classes


def download_member(stem: str, root: Path) -> None:
    """Download a member with the ``medmnist`` package; raise RuntimeError without it or for other files."""
    match = MEMBER_AT_SIZE.fullmatch(stem)
    if match is None:
        raise RuntimeError(f"{stem} is not a member of MedMNIST: {', '.join(MEMBERS)}, or one with _64, _128, _224")
    try:
        package = importlib.import_module("medmnist")
    except ImportError as error:
        raise RuntimeError("pip install medmnist to download it, or fetch the file yourself") from error
    member = getattr(package, package.INFO[match[1]]["python_class"])
    member(split="train", download=True, root=str(root), size=int(match[2] or 28))
