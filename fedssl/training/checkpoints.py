"""Checkpoints that are whole or absent, say what made them, and load without running code from the file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from fedssl import __version__
from fedssl.utils.files import UnusableStateError, describe, read_state, write_state
from fedssl.utils.units import format_bytes

PATTERN = "*.ckpt"
FORMAT = 2
"""Counts up when a checkpoint gets another form, so that an older one is named as such."""

ORIGIN = "fedssl"
"""Key of what made a checkpoint."""

# The newest can be damaged by the disk; then the message offers the one before.
KEPT = 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint format of a run: written through a temporary file, read as tensors and plain types only.

    Args:
        notes: Notes beside the origin of every checkpoint, such as the configuration.
    """

    def __init__(self, notes: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._notes = notes or {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            ValueError: Something in it could not be loaded again.
            OSError: The disk refused; older checkpoints are untouched and the message names the newest.
        """
        target = Path(path)
        made = checkpoint.get(ORIGIN, {}) | self._notes | {"form": form_of(checkpoint)}
        try:
            # A rule's secret, such as the key of a private run's noise, is its owner's alone.
            secret = bool(checkpoint.get("server", {}).get("aggregation"))
            write_state(checkpoint | {ORIGIN: made}, target, private=secret)
        # PyTorch reports a full disk as a ``RuntimeError``.
        except (OSError, RuntimeError) as error:
            last = _newest_usable(target.parent)
            hint = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
            free = format_bytes(shutil.disk_usage(target.parent).free)  # PyTorch does not say when it finds too little
            message = f"cannot write the checkpoint {target}: {error}; {free} are free there; {hint}"
            raise OSError(message) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Load a checkpoint.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It cannot be used; the message offers another one of its folder.
        """
        return read_checkpoint(Path(path))


class RoundCheckpoint(ModelCheckpoint):
    """Callback that writes one checkpoint a round (an epoch of the trainer) and keeps the two newest.

    Lightning would keep a list of them in the checkpoint itself, from which those are missing that were written just
    before a kill. The folder is looked at instead.

    Args:
        folder: Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            # A bare number, which ``keep_newest`` reads; an epoch that is repeated replaces its file.
            filename="{epoch:05d}",
            save_top_k=-1,
            every_n_epochs=1,
            # Left open, Lightning would choose the moment by the interval of validation.
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, then remove older ones."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath:
            keep_newest(Path(self.dirpath), trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Save nothing: the folder is the list of checkpoints."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load nothing."""


def keep_newest(folder: Path, epoch: int) -> None:
    """Remove all checkpoints but that of an epoch and the one before; none if that of the epoch is not there.

    Later epochs are of a course that the run has left, when it was resumed from before them.
    """
    numbered = {int(path.stem): path for path in folder.glob(PATTERN) if path.stem.isdigit()}
    if epoch not in numbered:
        return
    kept = sorted(number for number in numbered if number <= epoch)[-KEPT:]
    for number in numbered.keys() - kept:
        numbered[number].unlink(missing_ok=True)


def origin(**more: Any) -> dict[str, Any]:
    """Describe the code that writes a checkpoint."""
    return {"format": FORMAT, "version": __version__, **more}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, without unpickling anything but tensors and plain types.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or not one that this version writes; the message offers another one of its folder if
            that one can be used.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return _read(path)
    except UnusableStateError as error:
        other = _newest_usable(path.parent, path)
        hint = f"; go on from {other} instead" if other else ""
        raise ValueError(f"the checkpoint {path} {error}{hint}") from error


def check_origin(checkpoint: Any) -> None:
    """Check that this version of the code wrote a checkpoint.

    Raises:
        UnusableStateError: It did not.
    """
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UnusableStateError("is no checkpoint of a run")
    made = checkpoint.get(ORIGIN)
    if not isinstance(made, Mapping) or "format" not in made:
        raise UnusableStateError(
            "has no format number: an older version of fedssl, or another program, wrote it; go on with that one"
        )
    if made["format"] != FORMAT:
        raise UnusableStateError(
            f"has format {made['format']}, of fedssl {made.get('version')}, and this version reads format {FORMAT}: "
            "go on with the version that wrote it"
        )


def form_of(checkpoint: Mapping[str, Any]) -> str:
    """Hash all keys and types but those of the origin."""
    known = hashlib.blake2b(digest_size=16)
    describe({key: value for key, value in checkpoint.items() if key != ORIGIN}, known)
    return known.hexdigest()


def checkpoints_of(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, oldest first."""
    found = []
    for path in folder.glob(PATTERN):
        with suppress(FileNotFoundError):  # a run at work deletes old ones
            # By time: a run that was resumed from an earlier round has newer checkpoints with lower numbers.
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [path for *_, path in sorted(found)]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder."""
    found = checkpoints_of(folder)
    return found[-1] if found else None


def _read(path: Path) -> dict[str, Any]:
    checkpoint = read_state(path)
    check_origin(checkpoint)
    # A Trainer without ``AtomicCheckpointIO`` notes no form; those checkpoints load, with fewer checks.
    if checkpoint[ORIGIN].get("form", form_of(checkpoint)) != form_of(checkpoint):
        raise UnusableStateError("was altered: its keys or types are not those that it was written with")
    for name, tensor in checkpoint["state_dict"].items():
        if not isinstance(tensor, Tensor):
            raise UnusableStateError(f"has weights that are no tensors ({name}): it was altered")
        if not torch.isfinite(tensor).all():
            raise UnusableStateError(f"has weights that are not finite ({name}): the run had diverged before it")
    return checkpoint


def _newest_usable(folder: Path, but: Path | None = None) -> Path | None:
    """Find the newest checkpoint that can be read, so that no message recommends one that fails as well."""
    for path in reversed(checkpoints_of(folder)):
        if path != but:
            with suppress(UnusableStateError, OSError):
                _read(path)
                return path
    return None
