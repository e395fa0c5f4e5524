"""Listing of folders: the image files in them, and what lies beside these."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

SUFFIXES = frozenset({*IMG_EXTENSIONS, ".gif", ".dcm"})


def image_files(folder: Path) -> list[Path]:
    """List the image files directly in ``folder``, sorted by name, without hidden ones; empty if it does not exist."""
    return [path for path in _entries(folder) if is_image(path) and not path.is_dir()]


def images_below(folder: Path) -> list[Path]:
    """List the image files in ``folder``, then those of its subfolders at any depth, sorted by name in each."""
    return [path for path in files_below(folder) if is_image(path)]


def subfolders(folder: Path) -> list[Path]:
    """List the folders directly in ``folder``, sorted by name, without hidden ones; empty if it does not exist."""
    return [path for path in _entries(folder) if path.is_dir()]


def files_below(folder: Path) -> list[Path]:
    """List all visible files in ``folder``, then those of its subfolders at any depth, sorted by name in each.

    A link to a folder that the list is in already is not followed: it would never end.
    """
    return _below(folder, frozenset())


def is_image(path: Path) -> bool:
    """Tell by its name if a file is an image."""
    return path.suffix.lower() in SUFFIXES


def _below(folder: Path, above: frozenset[Path]) -> list[Path]:
    place = folder.resolve()
    if place in above:
        return []
    entries = _entries(folder)
    inner = {path for path in entries if path.is_dir()}
    below = (_below(path, above | {place}) for path in entries if path in inner)
    return [path for path in entries if path not in inner] + [path for paths in below for path in paths]


def _entries(folder: Path) -> list[Path]:
    """List what lies in a folder; unlike ``Path.glob``, one that may not be read is an error and not empty."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
