"""Sources of the data sets: their readers, what these return, the download of absent files, and fixed splits."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np

YOUR_OWN = "Set --data.root to the folder of your images, --data.eval_root to that of an evaluation elsewhere"


@dataclass(frozen=True)
class Arrays:
    """Decoded images: ``images`` uint8 (N, C, H, W) with C 1 or 3, ``labels`` integers (N,), -1 for none."""

    images: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]

    @property
    def image_size(self) -> int:
        """Shorter side in pixels."""
        return min(self.images.shape[2:])

    @property
    def channels(self) -> int:
        """Colour channels, 1 or 3."""
        return self.images.shape[1]


@dataclass(frozen=True)
class Holders:
    """Client that holds each sample, as the data themselves say, and the group that it belongs to.

    Args:
        names: Names of the clients.
        clients: Position of each sample's client in ``names``, (N,).
        groups: Number of each sample's group, (N,), such as the patient shown, which no split may divide; ``None`` if
            every sample stands for itself.
    """

    names: Sequence[str]
    clients: np.ndarray
    groups: np.ndarray | None = None

    def only(self, kept: np.ndarray) -> Holders:
        """Return the holders of the samples at these positions."""
        return replace(self, clients=self.clients[kept], groups=None if self.groups is None else self.groups[kept])


@dataclass(frozen=True)
class Files:
    """Image files of any size: one path and one label (-1 for none) an image.

    ``image_size`` is the natural size in pixels where all files have the same, otherwise None. They are decoded to
    ``channels`` colours, unless the user wants grey. ``holders`` says who has each file, where the data set knows it.
    ``others`` are files beside them that are no images by their names.
    """

    paths: Sequence[Path]
    labels: np.ndarray
    classes: Sequence[str]
    image_size: int | None = None
    channels: int = 3
    holders: Holders | None = None
    others: Sequence[Path] = ()

    def only(self, kept: np.ndarray) -> Files:
        """Return the files at these positions."""
        paths = [self.paths[position] for position in kept]
        return replace(self, paths=paths, labels=self.labels[kept], holders=self.holders and self.holders.only(kept))


@dataclass(frozen=True)
class Loader:
    """Reader of one data set, with its origin.

    Args:
        read: Function of (root, split) that returns the images; an absent file raises FileNotFoundError with its name.
        title: Name of the data set, for people.
        page: Project page, or whatever tells where to get it; empty for the user's own images.
        layout: Files expected below the root.
        download: Function that downloads the data set below a root; ``None`` if users must fetch it themselves.
        splits: Names of the allowed splits.
    """

    read: Callable[[Path, str], Any]
    title: str = ""
    page: str = ""
    layout: str = ""
    download: Callable[[Path], object] | None = None
    splits: tuple[str, ...] = ("train", "test")

    def load(self, root: Path, split: str, download: bool) -> Any:
        """Read one split; if a file is absent, download the data set and read again.

        Raises:
            FileNotFoundError: A file is absent, and the download is not allowed or fails; the message tells where to
                get the file.
        """
        try:
            return self.read(root, split)
        except FileNotFoundError as absent:
            missing, reason = absent.filename or absent, " (download=False)" if self.download else ""
        if self.download and download:
            print(f"downloading {self.title} to {root}", file=sys.stderr)
            try:
                root.mkdir(parents=True, exist_ok=True)
                self.download(root)
                return self.read(root, split)
            except (OSError, RuntimeError, HTTPException, TarError, EOFError) as error:
                reason = f" (download failed: {error})"
        raise FileNotFoundError(
            f"{self.title}: {missing} not found under root {root}{reason}. "
            f"{f'Get it from {self.page}' if self.page else YOUR_OWN}; expected layout: {self.layout}"
        )


def find(*candidates: Path) -> Path:
    """Return the first path that exists.

    Raises:
        FileNotFoundError: None does; the error has the name of the first.
    """
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(errno.ENOENT, "not found", str(candidates[0]))


def stratified_split(labels: np.ndarray, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images so that every class gives the same fraction to the test part.

    Args:
        labels: Class of each image, (N,).
        test_fraction: Part of each class that goes to the test set, rounded to the nearest image.
        seed: The same seed gives the same split with every version of NumPy.

    Returns:
        Sorted indices of the train and of the test images.
    """
    # RandomState, not Generator nor scikit-learn: NumPy promises to keep this stream unchanged, and a split is for ever
    random = np.random.RandomState(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
