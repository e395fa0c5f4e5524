"""Disclosure rules for reports and Weights & Biases, which are handed on: no private images, no machine paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule

from fedssl.data.datasets.registry import is_public
from fedssl.data.images import ImageData

PATHS = ("root", "eval_root", "table", "weights", "heads", "run_dir", "ckpt_path", "default_root_dir", "folder")
"""Settings that name a place on the machine, even if their value does not look like a path."""
LEFT_OUT = "(not shown)"


def may_show_images(data: LightningDataModule) -> bool:
    """Return True if everybody may see the images of an evaluation, because their data sets are public.

    Args:
        data: Data module after ``setup``.
    """
    if not isinstance(data, ImageData) or data.no_evaluation:
        return False
    return all(is_public(images.name) for images in (data.eval_train, data.eval_test))


def without_paths(settings: Any, name: str = "") -> Any:
    """Copy nested settings, with places on this machine left out."""
    if isinstance(settings, dict):
        return {key: without_paths(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_paths(value, name) for value in settings]
    if isinstance(settings, str) and (name in PATHS or Path(settings).is_absolute() or settings.startswith("~")):
        return LEFT_OUT
    return settings
