"""A run folder belongs to one process: it is claimed by making it, and locked as long as its run is at work."""

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
    """Make a folder for the duration of a block; whatever of it is empty at the end is removed again.

    Args:
        folder: The folder; folders above it are made too.
        exclusively: It must not exist yet: whoever makes it owns it.

    Raises:
        FileExistsError: It exists already, and ``exclusively`` was asked for.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=not exclusively)
    try:
        yield folder
    finally:
        with suppress(OSError):  # not empty: the run has begun
            for path in missing:
                path.rmdir()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run folder for the duration of a block.

    The operating system holds the lock, so that it ends with its process, however that ends. What the file says is
    for people; a file that was left behind locks nothing.

    Args:
        folder: An existing folder.

    Raises:
        FolderHeldError: Another process holds it; the message says which.
    """
    file = _open_locked(folder / LOCK)
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
            (folder / LOCK).unlink(missing_ok=True)


def check_free(folder: Path) -> None:
    """Check that nobody is fitting in a folder, which need not exist.

    Raises:
        FolderHeldError: Somebody is.
    """
    if (folder / LOCK).exists():
        with held(folder):
            pass


def _open_locked(path: Path) -> TextIO | None:
    """The lock file, locked; ``None`` where the file system has no locks.

    A file that its last holder deleted between our opening and locking it locks nothing: another one is made.
    """
    while True:
        file = path.open("a+")
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
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()
