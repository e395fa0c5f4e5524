"""Saved states: plain, whole or refused."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from fedssl.utils.files import (
    UnusableStateError,
    check_network,
    check_plain,
    check_same,
    describe_optimizer,
    read_state,
    restoring,
    write_state,
)

STATE = {"w": torch.arange(512.0), "b": torch.arange(64.0), "ids": {1: ["a", 2.0]}, "none": None}


class Evil:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_state(STATE, tmp_path / "state")
    return tmp_path / "state"


def same(loaded: Any) -> bool:
    tensors = all(torch.equal(loaded[key], STATE[key]) for key in ("w", "b"))
    return tensors and loaded["ids"] == STATE["ids"] and loaded["none"] is None


def test_a_state_comes_back(file: Path) -> None:
    assert same(read_state(file))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.float64(1.5), r"numpy\.float64"),
        (np.zeros(2), r"numpy\.ndarray"),
        (Path("a"), "PosixPath"),
        (len, "builtin.*"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(value: Any, kind: str, tmp_path: Path) -> None:
    state = {"server": OrderedDict(fleet=[{"now": 1.0}, {"now": value}])}
    with pytest.raises(ValueError, match=f"state/server/fleet/1/now is a .*{kind}, and a saved state holds tensors"):
        write_state(state, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_keys_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"state/clients, key np\.int64\(3\) is a numpy\.int64"):
        check_plain({"clients": {np.int64(3): 1.0}})


def test_no_flipped_bit_loads_as_another_state(file: Path) -> None:
    """In the tensors, in the archive's headers and in its table of contents."""
    whole, draw = file.read_bytes(), random.Random(0)
    with zipfile.ZipFile(file) as archive:
        tables = [*range(archive.start_dir, len(whole))]
        tables += [at for entry in archive.infolist() for at in range(entry.header_offset, entry.header_offset + 30)]
    refused = 0
    for position in [*draw.sample(range(len(whole)), 150), *draw.sample(tables, 150)]:
        changed = bytearray(whole)
        changed[position] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            assert same(read_state(file)), position
        except UnusableStateError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"PK", b"hello\n", pickle.dumps([1, 2])])
def test_what_is_no_archive_is_damaged(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(UnusableStateError, match="is damaged: it is cut off, overwritten, or was never a checkpoint"):
        read_state(file)


def test_an_archive_of_something_else_is_damaged(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UnusableStateError, match="is damaged: its archive is whole, its content is not"):
        read_state(file)


def test_code_is_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "state", tmp_path / "made by the pickle"
    torch.save({"w": Evil(made)}, path)
    with pytest.raises(UnusableStateError, match="holds more than tensors and plain values, which could be code"):
        read_state(path)
    assert not made.exists()


@pytest.mark.parametrize("error", [KeyError("now"), TypeError("unknown field 'x'"), AttributeError("no items")])
def test_a_state_of_another_form_is_refused_in_a_sentence(error: Exception) -> None:
    with pytest.raises(ValueError, match="is not of the form that this version of fedssl writes"), restoring():
        raise error


def test_settings_are_compared() -> None:
    check_same({"clients": 3, "more": 1}, {"clients": 3})
    with pytest.raises(ValueError, match="was made with clients 3, this run has 4; resume with the configuration"):
        check_same({"clients": 3}, {"clients": 4})
    with pytest.raises(ValueError, match="does not say with which deadline it was made, this run has None"):
        check_same({"clients": 3}, {"clients": 3, "deadline": None})


def test_networks_are_compared() -> None:
    then = {"stem.w": torch.zeros(2, 3)}
    check_network(then, {"stem.w": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"another network: stem.w is \(2, 3\), in this run \(2, 4\)"):
        check_network(then, {"stem.w": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"the checkpoint has stem.w, which this run has not"):
        check_network(then, {})
    with pytest.raises(ValueError, match=r"this run has tail.w, which the checkpoint has not"):
        check_network(then, then | {"tail.w": torch.zeros(1)})


def test_optimizers_are_described() -> None:
    described = describe_optimizer(SGD([torch.zeros(1)], lr=0.5, momentum=0.9))
    assert described.startswith("SGD(")
    assert "lr 0.5" in described
    assert "momentum 0.9" in described
