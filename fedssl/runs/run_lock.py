"""Claim and lock of a run folder: it belongs to one process, for as long as its run trains.

Two steps are needed. Making a numbered folder is atomic and decides which of two new runs gets the number. The lock
protects a folder that exists already, when two processes resume the same run.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

LOCK = "lock"


class FolderHeldError(ValueError):
    """Another process is fitting in the folder."""


@contextmanager
def made(folder: Path, exclusively: bool = False) -> Iterator[Path]:
    """Make a folder for the duration of a block; remove it at the end, and its new parents, if they are empty.

    Args:
        folder: Folder to make, with its parents.
        exclusively: Require that the folder does not exist yet; the process that makes it owns it.

    Raises:
        FileExistsError: The folder exists already, and ``exclusively`` is set.
    """
    # Deepest first, as their removal needs it.
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=not exclusively)
    try:
        yield folder
    finally:
        with suppress(OSError):  # rmdir refuses a folder that is not empty: the run has begun
            for path in missing:
                path.rmdir()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run folder for the duration of a block.

    The operating system holds the lock (``flock``), so that it ends with its process, however that ends. A file with a
    process id would outlive a killed run and block its resume. The text in the file is for people only; a file left
    behind locks nothing.

    Args:
        folder: Existing folder.

    Raises:
        FolderHeldError: Another process holds the lock; the message names it.
    """
    file = _open_locked(folder / LOCK)
    # Some network file systems have no locks. A warning is better than no run at all there.
    if file is None:
        print(f"{folder} cannot be locked on this file system: start no second run in it", file=sys.stderr)
        yield
        return
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        file.flush()
        try:
            yield
        finally:
            # While the lock is held: later, this could delete the file that the next process has just locked.
            (folder / LOCK).unlink(missing_ok=True)


def check_free(folder: Path) -> None:
    """Check that no process is fitting in a folder, which need not exist.

    Raises:
        FolderHeldError: A process holds the folder's lock.
    """
    # A left-over file tells nothing: only an attempt to lock it does.
    if (folder / LOCK).exists():
        with held(folder):
            pass


def _open_locked(path: Path) -> TextIO | None:
    """Open and lock the lock file; ``None`` where the file system has no locks."""
    while True:
        file = path.open("a+")  # "w" would erase the holder's name before the lock is ours
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise FolderHeldError(f"{path.parent} is in use by {holder}: wait for it or end it") from None
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            return None
        # The last holder deletes the file when it ends. If that happens between our opening and locking it, we hold
        # the lock of a nameless file, and the next process would lock a new one beside us: try again.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()
