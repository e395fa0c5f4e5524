"""Many file paths in little memory, and the listing of image files in a stable order."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS


class PackedPaths:
    """Paths as one array of bytes below their common folder.

    A list of a million ``Path`` objects takes hundreds of megabytes, and touching their reference counts
    copies it into every forked worker; one array does neither.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        parents = {str(path.parent) for path in paths}
        self.root = os.path.commonpath(parents) if parents else ""
        self._names = np.array([os.fsencode(os.path.relpath(path, self.root)) for path in paths], dtype=bytes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return Path(self.root, os.fsdecode(bytes(self._names[index])))


def image_files(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name, without hidden ones; none if it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(IMG_EXTENSIONS) and not e.name.startswith(".")]
    return [folder / name for name in sorted(names)]


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in ``folder``, sorted by name, without hidden ones; none if it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
