"""One folder a run: where it is, and what may be in it."""

from __future__ import annotations

from pathlib import Path

from fedssl.checkpoints import newest_checkpoint

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LAST = "last"


def new_run_folder(parent: Path) -> Path:
    """The next free numbered folder, for example ``runs/lw_fedssl/0003``."""
    numbers = [int(path.name) for path in _numbered(parent)]
    return parent / f"{max(numbers, default=-1) + 1:04d}"


def latest_run_folder(parent: Path) -> Path | None:
    """The highest numbered folder that holds a checkpoint."""
    runs = [path for path in _numbered(parent) if newest_checkpoint(path / CHECKPOINTS)]
    return max(runs, key=lambda path: int(path.name), default=None)


def choose_run_folder(run_dir: str | None, ckpt_path: str | None, parent: Path) -> Path:
    """Where a run writes.

    Args:
        run_dir: The folder the user asked for, if any.
        ckpt_path: The checkpoint to start from: ``last``, a file, or none.
        parent: Numbered folders of runs of the same configuration.

    Raises:
        ValueError: ``run_dir`` already holds a run and it is not to be resumed.
        FileNotFoundError: ``last`` was asked for and there is no run to resume.
    """
    if run_dir is None and ckpt_path is None:
        return new_run_folder(parent)
    if run_dir is None and ckpt_path == LAST:
        latest = latest_run_folder(parent)
        if latest is None:
            raise FileNotFoundError(f"--ckpt_path last: no run under {parent} has a checkpoint")
        return latest
    if run_dir is None:
        return folder_of_checkpoint(Path(str(ckpt_path))) or new_run_folder(parent)
    folder = Path(run_dir)
    if ckpt_path is None and (folder / CONFIG).exists():
        raise ValueError(f"{folder} already holds a run: resume it with --ckpt_path last, or choose another --run_dir")
    return folder


def folder_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run folder a checkpoint lies in, or ``None`` if it lies elsewhere."""
    inside = checkpoint.parent.name == CHECKPOINTS and (checkpoint.parent.parent / CONFIG).exists()
    return checkpoint.parent.parent if inside else None


def find_checkpoint(ckpt_path: str | None, folder: Path) -> Path | None:
    """The checkpoint file that ``--ckpt_path`` means.

    Raises:
        FileNotFoundError: It does not exist.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != LAST:
        if not Path(ckpt_path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {ckpt_path}")
        return Path(ckpt_path)
    newest = newest_checkpoint(folder / CHECKPOINTS)
    if newest is None:
        raise FileNotFoundError(f"--ckpt_path last: {folder / CHECKPOINTS} has no checkpoint")
    return newest


def _numbered(parent: Path) -> list[Path]:
    return [path for path in parent.glob("*") if path.name.isdigit()]
