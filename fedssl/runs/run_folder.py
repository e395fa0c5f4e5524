"""Run folders: choose, claim and open one, and find its checkpoints."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedssl.runs.run_lock import held, made
from fedssl.training.checkpoints import checkpoints_of, newest_checkpoint, read_checkpoint
from fedssl.training.endings import shortfall

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
RESULTS = "results.json"
METRICS = "metrics.csv"
LAST = "last"
AUTO = "auto"


@contextmanager
def open_run_folder(run_dir: str | None, ckpt_path: str | None, parent: Path) -> Iterator[Path]:
    """Claim and lock the folder that a run writes to, for the duration of a block.

    A folder that is still empty at the end is removed, so that a refused run leaves none.

    Args:
        run_dir: Folder that the user asked for; ``None`` for a numbered one.
        ckpt_path: Checkpoint to start from: ``last``, ``auto``, a file, or none.
        parent: Folder with the numbered runs of the same configuration.

    Raises:
        FolderHeldError: Another process is fitting in the folder.
        ValueError: As in ``choose_run_folder``.
        FileNotFoundError: As in ``choose_run_folder``.
    """
    while True:
        folder = Path(run_dir) if run_dir else choose_run_folder(None, ckpt_path, parent)
        # Not derived from the folder's existence: another run may have made it since its number was found free.
        numbered = run_dir is None and not _resumes_in_place(ckpt_path)
        with ExitStack() as stack:
            try:
                stack.enter_context(made(folder, exclusively=numbered))
            except FileExistsError:
                if numbered:
                    continue  # another run has just claimed this number
                raise
            stack.enter_context(held(folder))
            if run_dir:  # checked under the lock, now that no other process can change the folder
                choose_run_folder(run_dir, ckpt_path, parent)
            yield folder
            return


def new_run_folder(parent: Path) -> Path:
    """Return the next free numbered folder, for example ``runs/lw_fedssl/0003``."""
    numbers = [int(path.name) for path in _numbered(parent)]
    return parent / f"{max(numbers, default=-1) + 1:04d}"


def latest_run_folder(parent: Path) -> Path | None:
    """Return the folder with the highest number among those that hold a checkpoint."""
    runs = [path for path in _numbered(parent) if newest_checkpoint(path / CHECKPOINTS)]
    return max(runs, key=lambda path: int(path.name), default=None)


def choose_run_folder(run_dir: str | None, ckpt_path: str | None, parent: Path) -> Path:
    """Choose the folder that a run writes to.

    Args:
        run_dir: Folder that the user asked for; ``None`` for a numbered one.
        ckpt_path: Checkpoint to start from: ``last``, ``auto``, a file, or none.
        parent: Folder with the numbered runs of the same configuration.

    Raises:
        ValueError: ``run_dir`` holds a run that is not to be resumed, or ``auto`` comes without ``run_dir``.
        FileNotFoundError: ``last`` finds no run to resume.
    """
    if run_dir is None and ckpt_path is None:
        return new_run_folder(parent)
    if run_dir is None and ckpt_path == AUTO:
        raise ValueError(
            "--ckpt_path auto needs --run_dir: without it every call would begin a new run in the next free folder"
        )
    if run_dir is None and ckpt_path == LAST:
        latest = latest_run_folder(parent)
        if latest is None:
            raise FileNotFoundError(f"--ckpt_path last: no run under {parent} has a checkpoint")
        return latest
    if run_dir is None:
        return folder_of_checkpoint(Path(str(ckpt_path))) or new_run_folder(parent)
    folder = Path(run_dir)
    if ckpt_path is None and (folder / CONFIG).exists():
        begun = newest_checkpoint(folder / CHECKPOINTS)
        way = "resume it with --ckpt_path last" if begun else "--ckpt_path auto begins it anew, as it has no checkpoint"
        raise ValueError(f"{folder} already holds a run: {way}, or choose another --run_dir")
    return folder


def folder_of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the run folder of a checkpoint; ``None`` if the checkpoint lies elsewhere."""
    inside = checkpoint.parent.name == CHECKPOINTS and (checkpoint.parent.parent / CONFIG).exists()
    return checkpoint.parent.parent if inside else None


def _resumes_in_place(ckpt_path: str | None) -> bool:
    """Tell if a run without ``--run_dir`` continues in the folder of its checkpoint instead of a new one."""
    return ckpt_path is not None and (ckpt_path == LAST or folder_of_checkpoint(Path(ckpt_path)) is not None)


def find_checkpoint(ckpt_path: str | None, folder: Path) -> Path | None:
    """Find the checkpoint file that ``--ckpt_path`` means; ``None`` for a run from the start.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint cannot be read or, for ``auto``, no checkpoint of the folder can.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == AUTO:
        return newest_readable(folder / CHECKPOINTS)
    if ckpt_path == LAST:
        newest = newest_checkpoint(folder / CHECKPOINTS)
        if newest is None:
            anew = f"; --ckpt_path auto with --run_dir {folder} begins the run anew" if folder.exists() else ""
            raise FileNotFoundError(f"--ckpt_path last: {folder / CHECKPOINTS} has no checkpoint{anew}")
        ckpt_path = str(newest)
    read_checkpoint(Path(ckpt_path))
    return Path(ckpt_path)


def newest_readable(checkpoints: Path) -> Path | None:
    """Find the newest readable checkpoint; ``None`` if there is no checkpoint at all.

    Raises:
        ValueError: There are checkpoints, but none can be read. Starting anew would overwrite them.
    """
    refused: ValueError | None = None
    for path in reversed(checkpoints_of(checkpoints)):
        try:
            read_checkpoint(path)
        except ValueError as error:
            print(f"--ckpt_path auto passes over {path}: {error}", file=sys.stderr)
            refused = error
        else:
            return path
    if refused:
        raise ValueError(f"--ckpt_path auto: no checkpoint in {checkpoints} can be read") from refused
    return None


def read_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json`` of a folder; empty for a folder without one.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / RESULTS
    try:
        return {**json.loads(path.read_text())} if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of ``metrics.csv``; none if the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_finished(folder: Path) -> bool:
    """Tell if a run has completed its last round and written results; one that was cut short has results too.

    Raises:
        ValueError: The results cannot be read.
    """
    return (folder / RESULTS).exists() and not shortfall(read_results(folder))


def _numbered(parent: Path) -> list[Path]:
    return [path for path in parent.glob("*") if path.name.isdigit()]
