"""What of a user's data and machine may stand in a report or in Weights & Biases, which are meant to be handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule

from fedssl.data.datasets.registry import is_public
from fedssl.data.images import ImageData

PATHS = ("root", "weights", "run_dir", "ckpt_path", "default_root_dir", "folder")
"""Settings that name a place, wherever it is."""
LEFT_OUT = "(not shown)"


def may_show_images(data: LightningDataModule) -> bool:
    """Whether everybody may see the images of an evaluation: they are of public data sets.

    Args:
        data: Has been set up.
    """
    return isinstance(data, ImageData) and all(is_public(images.name) for images in (data.eval_train, data.eval_test))


def without_paths(settings: Any, name: str = "") -> Any:
    """A copy of nested settings in which places on this machine are left out."""
    if isinstance(settings, dict):
        return {key: without_paths(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_paths(value, name) for value in settings]
    if isinstance(settings, str) and (name in PATHS or Path(settings).is_absolute() or settings.startswith("~")):
        return LEFT_OUT
    return settings
