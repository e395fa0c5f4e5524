"""Checkpoints that are whole or absent, and load without running code from the file."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fedssl.files import write_atomically

PATTERN = "*.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes through a temporary file in the same folder; loads tensors and plain types only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint.

        Raises:
            OSError: The disk refused; older checkpoints are untouched and the message names the newest.
        """
        target = Path(path)
        try:
            write_atomically(target, partial(_write, checkpoint))
        except (OSError, RuntimeError) as error:
            last = newest_checkpoint(target.parent)
            hint = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
            raise OSError(f"cannot write the checkpoint {target}: {error}; {hint}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Loads a checkpoint.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged; the message offers another one of its folder.
        """
        return read_checkpoint(Path(path))


class RoundCheckpoint(ModelCheckpoint):
    """Writes one checkpoint a round (an epoch of the trainer) and keeps the two newest.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="{epoch:05d}",
            monitor="epoch",
            mode="max",
            save_top_k=2,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """Saves a checkpoint; one that keeps a rule's secret is its owner's alone."""
    if checkpoint.get("server", {}).get("aggregation"):
        path.touch(mode=0o600)
    torch.save(checkpoint, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, without unpickling anything but tensors and plain types.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged; the message offers another one of its folder.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        others = [other for other in checkpoints_of(path.parent) if other != path]
        hint = f"; the one before is {others[-1]}" if others else ""
        raise ValueError(f"the checkpoint {path} is truncated or damaged{hint}") from error


def checkpoints_of(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    found = []
    for path in folder.glob(PATTERN):
        with suppress(FileNotFoundError):  # a run at work deletes old ones
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [path for *_, path in sorted(found)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    found = checkpoints_of(folder)
    return found[-1] if found else None


def check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the settings a checkpoint was made with to those of the run that loads it.

    Raises:
        ValueError: One differs.
    """
    for key, value in now.items():
        if then.get(key) != value:
            raise ValueError(
                f"the checkpoint was made with {key} {then.get(key)}, this run has {value}; "
                "resume with the configuration of the run folder"
            )
