"""Files that are whole or absent, and saved states in them, which are refused when a bit has changed."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PLAIN = (type(None), bool, int, float, str, Tensor, nn.Parameter)
GROUPS = (list, tuple, set)
TABLES = (dict, OrderedDict)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder and rename it.

    Args:
        path: Path of the file; its folder is created.
        write: Function that writes the temporary file at the given path.

    Raises:
        OSError: The disk refused, and the message names the file; an earlier file is untouched, and no temporary file
            remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            write(temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file as ``write_atomically`` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors of the disk, because that of a full disk lacks it.

    Raises:
        OSError: The disk refused.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def replace_folder(fresh: Path, target: Path) -> None:
    """Move the folder ``fresh`` to ``target`` on the same file system; an older one is removed."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


class UnusableStateError(ValueError):
    """Saved state that cannot be used; the message continues a sentence that has named the file."""


def write_state(state: Any, path: Path, private: bool = False) -> None:
    """Write a state, all or nothing.

    Args:
        state: State of tensors and plain values.
        path: Path of the file.
        private: Let only the owner read the file.

    Raises:
        ValueError: The state holds something that could be written but not read again.
        OSError: The disk refused.
    """
    check_plain(state)

    def write(temporary: Path) -> None:
        if private:
            temporary.touch(mode=0o600)
        torch.save(state, temporary)

    write_atomically(path, write)


def check_plain(state: Any, where: str = "state") -> None:
    """Refuse states that ``read_state`` would refuse, such as NumPy numbers, which look like plain ones.

    Raises:
        ValueError: The state holds another type; the message has the keys that lead to it.
    """
    kind = type(state)
    if kind in TABLES:
        for key, value in state.items():
            check_plain(key, f"{where}, key {key!r}")
            check_plain(value, f"{where}/{key}")
    elif kind in GROUPS:
        for position, value in enumerate(state):
            check_plain(value, f"{where}/{position}")
    elif kind not in PLAIN:
        raise ValueError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, and a saved state holds tensors and plain values "
            "only, or it could not be loaded again: convert it where it is made"
        )


def describe(state: Any, known: hashlib.blake2b) -> None:
    """Add keys, lengths and types of a state to a hash, without its values."""
    known.update(f"{type(state).__name__} ".encode())
    if isinstance(state, TABLES):
        for key, value in state.items():
            known.update(f"{key!r}: ".encode())
            describe(value, known)
    elif isinstance(state, GROUPS):
        known.update(f"{len(state)} ".encode())
        for value in state:
            describe(value, known)


def read_state(path: Path) -> Any:
    """Read a state onto the CPU after checking its checksums; no code from the file runs.

    ``torch.load`` ignores the archive's checksums and would load changed bits as other weights.

    Raises:
        OSError: The file cannot be opened.
        UnusableStateError: The file is damaged, or holds more than tensors and plain values.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except Exception as error:  # a damaged archive raises whatever its bits happen to mean
            raise UnusableStateError("is damaged: it is cut off, overwritten, or was never a checkpoint") from error
        if damaged:
            raise UnusableStateError(f"is damaged: {damaged} in it does not have the checksum it was written with")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnusableStateError(
                "holds more than tensors and plain values, which could be code: it is not loaded"
            ) from error
        except Exception as error:
            raise UnusableStateError("is damaged: its archive is whole, its content is not") from error


@contextmanager
def restoring() -> Iterator[None]:
    """Turn errors from a state of another form into one sentence.

    Raises:
        ValueError: A key is missing or unknown, or has another type than expected.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"the checkpoint is not of the form that this version of fedssl writes ({what}): it was altered, or "
            "written by another version; go on with the version that wrote it"
        ) from error


def check_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the settings that a state was saved with to those of the run that loads it.

    Raises:
        ValueError: A setting differs, or was not saved.
    """
    for key, value in now.items():
        if key not in then:
            raise ValueError(
                f"the checkpoint does not say with which {key} it was made, this run has {value}: it was altered, or "
                "written by another version; go on with the version that wrote it"
            )
        if then[key] != value:
            raise ValueError(
                f"the checkpoint was made with {key} {then[key]}, this run has {value}; "
                "resume with the configuration of the run folder"
            )


def describe_optimizer(optimizer: Optimizer) -> str:
    """Return class and settings of an optimizer; they are restored with its state, so they cannot change."""
    given = {name: value for name, value in optimizer.defaults.items() if value is not None and value is not False}
    settings = ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
    return f"{type(optimizer).__name__}({settings})"


def check_network(then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of saved weights with those of the network that takes them.

    Raises:
        ValueError: Names or shapes differ.
    """
    advice = "use the configuration of the run folder"
    for key in [*then, *now]:
        if key not in then or key not in now:
            lacking, having = ("this run", "the checkpoint") if key in then else ("the checkpoint", "this run")
            raise ValueError(
                f"the checkpoint is of another network: {having} has {key}, which {lacking} has not; {advice}"
            )
        if then[key].shape != now[key].shape:
            shapes = f"{tuple(then[key].shape)}, in this run {tuple(now[key].shape)}"
            raise ValueError(f"the checkpoint is of another network: {key} is {shapes}; {advice}")
