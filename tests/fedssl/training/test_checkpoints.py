"""Checkpoints: whole, and without code inside."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedssl.training.checkpoints import (
    AtomicCheckpointIO,
    checkpoints_of,
    form_of,
    keep_newest,
    newest_checkpoint,
    origin,
    read_checkpoint,
)

ABSENT = object()
CONTENT: dict[str, Any] = {
    "pytorch-lightning_version": "2",
    "epoch": 4,
    "global_step": 4,
    "loops": {},
    "optimizer_states": [],
    "state_dict": {"w": torch.arange(3.0)},
}
CONTENT["fedssl"] = origin(form=form_of(CONTENT))


def write(path: Path, age: int = 0) -> Path:
    """A checkpoint that was written ``age`` seconds ago."""
    torch.save(CONTENT, path)
    time = 1_700_000_000 - age
    os.utime(path, (time, time))
    return path


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "00000.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    loaded = AtomicCheckpointIO().load_checkpoint(str(path))
    assert torch.equal(loaded["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert {key: value for key, value in loaded.items() if key != "state_dict"} == altered(state_dict=ABSENT)
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
    message = rf"cannot write the checkpoint .*00004\.ckpt: .* are free there; the last good checkpoint is {good}"
    with pytest.raises(OSError, match=message):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "00004.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["00003.ckpt"]
    monkeypatch.undo()
    assert read_checkpoint(good)["epoch"] == 4


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="there is no earlier checkpoint"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "00000.ckpt")
    assert not list(tmp_path.iterdir())


def damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-10])
    return path


def formed(**changes: Any) -> dict[str, Any]:
    content = altered(**changes)
    return content | {"fedssl": origin(form=form_of(content))}


def altered(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (CONTENT | changes).items() if value is not ABSENT}


@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_names_one_that_can_be_used(kept: float, tmp_path: Path) -> None:
    for number, age in ((1, 30), (2, 20), (3, 10)):
        write(tmp_path / f"0000{number}.ckpt", age)
    last = tmp_path / "00003.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    damage(tmp_path / "00002.ckpt")
    message = rf"the checkpoint {last} is damaged: .*; go on from {tmp_path / '00001.ckpt'} instead"
    with pytest.raises(ValueError, match=message):
        AtomicCheckpointIO().load_checkpoint(last)


def test_no_other_is_named_if_none_can_be_used(tmp_path: Path) -> None:
    for name in ("00000.ckpt", "00001.ckpt"):
        damage(write(tmp_path / name))
    with pytest.raises(ValueError, match=r"is damaged: (?!.*instead)"):
        read_checkpoint(tmp_path / "00001.ckpt")
    (tmp_path / ".00002.ckpt.tmp").mkdir()
    with pytest.raises(OSError, match="there is no earlier checkpoint"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "00002.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "is no checkpoint of a run"),
        ({"w": torch.zeros(1)}, "is no checkpoint of a run"),
        (altered(fedssl=ABSENT), "has no format number: an older version of fedssl, or another program, wrote it"),
        (altered(fedssl={"format": 99, "version": "9.0"}), r"has format 99, of fedssl 9\.0, and this version reads"),
        (altered(loops=ABSENT), "was altered: its keys or types are not those that it was written with"),
        (altered(epoch="4"), "was altered"),
        (altered(state_dict=[1]), "is no checkpoint of a run"),
        (formed(state_dict={"w": 1.0}), r"has weights that are no tensors \(w\)"),
        (
            altered(state_dict={"w": torch.tensor([1.0, math.nan])}),
            r"has weights that are not finite \(w\): the run had diverged",
        ),
    ],
)
def test_what_is_no_checkpoint_of_this_version_is_named_as_such(content: Any, message: str, tmp_path: Path) -> None:
    path, good = tmp_path / "00001.ckpt", write(tmp_path / "00000.ckpt")
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"the checkpoint {path} {message}.*; go on from {good} instead"):
        read_checkpoint(path)


def test_only_the_two_newest_stay(tmp_path: Path) -> None:
    """As kills leave more of them, and a run may go on from before the newest."""
    for number in (1, 4, 7, 8, 9, 30):
        write(tmp_path / f"{number:05d}.ckpt", age=number)
    write(tmp_path / "best.ckpt")
    keep_newest(tmp_path, 10)
    assert len(checkpoints_of(tmp_path)) == 7, "the checkpoint of epoch 10 was not written"
    keep_newest(tmp_path, 8)
    assert sorted(path.name for path in checkpoints_of(tmp_path)) == ["00007.ckpt", "00008.ckpt", "best.ckpt"]


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
