"""Checkpoints: whole, and without code inside."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fedssl.checkpoints import AtomicCheckpointIO, checkpoints_of, newest_checkpoint, read_checkpoint

CONTENT = {"w": torch.arange(3.0), "round": 4, "ids": {1: ["a", 2.0]}}


def write(path: Path, age: int = 0) -> Path:
    """A checkpoint that was written ``age`` seconds ago."""
    torch.save(CONTENT, path)
    time = 1_700_000_000 - age
    os.utime(path, (time, time))
    return path


class Evil:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "00000.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    loaded = AtomicCheckpointIO().load_checkpoint(str(path))
    assert torch.equal(loaded.pop("w"), CONTENT["w"])
    assert loaded == {"round": 4, "ids": {1: ["a", 2.0]}}
    assert [p.name for p in path.parent.iterdir()] == ["00000.ckpt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's writer turns a full disk into a RuntimeError."""
    good = write(tmp_path / "00003.ckpt")

    def full(content: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    message = rf"cannot write the checkpoint .*00004\.ckpt: .*; the last good checkpoint is {good}"
    with pytest.raises(OSError, match=message):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "00004.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["00003.ckpt"]
    monkeypatch.undo()
    assert read_checkpoint(good)["round"] == 4


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="there is no earlier checkpoint"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "00000.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_names_the_one_before(kept: float, tmp_path: Path) -> None:
    for number, age in ((1, 30), (2, 20), (3, 10)):
        write(tmp_path / f"0000{number}.ckpt", age)
    last = tmp_path / "00003.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    message = rf"the checkpoint {last} is truncated or damaged; the one before is {tmp_path / '00002.ckpt'}"
    with pytest.raises(ValueError, match=message):
        AtomicCheckpointIO().load_checkpoint(last)


def test_a_truncated_checkpoint_without_another(tmp_path: Path) -> None:
    path = tmp_path / "00000.ckpt"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is truncated or damaged$"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(zipped: bool, tmp_path: Path) -> None:
    path, made = tmp_path / "00000.ckpt", tmp_path / "made by the pickle"
    if zipped:
        torch.save({"w": Evil(made)}, path)
    else:
        path.write_bytes(pickle.dumps({"w": Evil(made)}, protocol=2))
    with pytest.raises(ValueError, match="is truncated or damaged"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not made.exists()


def test_an_absent_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*00007\.ckpt"):
        read_checkpoint(tmp_path / "00007.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_checkpoint(tmp_path)


def test_the_newest_is_the_one_written_last(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    paths = [write(tmp_path / name, age) for name, age in (("b.ckpt", 5), ("a.ckpt", 1), ("c.ckpt", 9))]
    (tmp_path / ".d.ckpt.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("x")
    assert checkpoints_of(tmp_path) == [paths[2], paths[0], paths[1]]
    assert newest_checkpoint(tmp_path) == paths[1]
