"""Return types of the data sets' readers, and the errors for missing files."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError

import numpy as np


@dataclass(frozen=True)
class Arrays:
    """Decoded images: ``images`` uint8 (N, C, H, W) with C 1 or 3, ``labels`` integers (N,), -1 for none."""

    images: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]


@dataclass(frozen=True)
class Files:
    """Image files of any size: one path and one label (-1 for none) an image.

    ``image_size`` is the natural size in pixels where all files have the same, otherwise None.
    """

    paths: Sequence[Path]
    labels: np.ndarray
    classes: Sequence[str]
    image_size: int | None = None


@dataclass(frozen=True)
class Loader:
    """Reader of one data set.

    Args:
        read: Function of (root, split, download allowed) that returns the images or raises FileNotFoundError.
        splits: Names of the allowed splits.
    """

    read: Callable[[Path, str, bool], Arrays | Files]
    splits: tuple[str, ...] = ("train", "test")


@dataclass(frozen=True)
class Source:
    """Origin of a data set: its name, project page, and the files expected below the root."""

    title: str
    page: str
    layout: str

    def missing(self, looked_for: Path, root: Path, reason: str = "") -> FileNotFoundError:
        """Return the error for a missing file, with instructions to get it."""
        because = f" ({reason})" if reason else ""
        return FileNotFoundError(
            f"{self.title}: {looked_for} not found under root {root}{because}. "
            f"Get it from {self.page}; expected layout: {self.layout}"
        )

    def fetch(self, looked_for: Path, root: Path, allowed: bool, download: Callable[[], object]) -> None:
        """Run ``download``; raise FileNotFoundError if that is not allowed or fails."""
        if not allowed:
            raise self.missing(looked_for, root, "download=False")
        print(f"downloading {self.title} to {root}", file=sys.stderr)
        try:
            root.mkdir(parents=True, exist_ok=True)
            download()
        except (OSError, RuntimeError, HTTPException, TarError, EOFError) as error:
            raise self.missing(looked_for, root, f"download failed: {error}") from error
        if not looked_for.exists():
            raise self.missing(looked_for, root, "the download did not bring it")


def stratified_split(labels: np.ndarray, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images so that every class gives the same fraction to the test part.

    Args:
        labels: Class of each image, (N,).
        test_fraction: Part of each class that goes to the test set, rounded to the nearest image.
        seed: The same seed gives the same split with every version of NumPy.

    Returns:
        Sorted indices of the train and of the test images.
    """
    # RandomState, not Generator: NumPy promises to keep only its stream unchanged, and a split is for ever
    random = np.random.RandomState(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
