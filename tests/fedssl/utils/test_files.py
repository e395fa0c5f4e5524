"""Files that are whole or absent."""

import errno
import os
from pathlib import Path

import pytest

from fedssl.utils.files import naming, replace_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_in_a_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"
    assert names(target.parent) == ["file.txt"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("a longer old text")
    write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, write)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_write_that_fails_before_its_file_exists(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file.txt", lambda path: 1 / 0)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    named = rf"No space left on device: '{tmp_path / 'file.txt'}'"
    with pytest.raises(OSError, match=named):
        write_atomically(tmp_path / "file.txt", lambda path: Path("/dev/full").write_text("new"))
    with pytest.raises(FileNotFoundError, match="absent"), naming(tmp_path):
        (tmp_path / "absent").read_text()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_late(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "file.txt"
    target.write_text("old")
    owner: object = os if call == "fsync" else Path
    monkeypatch.setattr(owner, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_target_is_never_half_written(tmp_path: Path) -> None:
    target, seen = tmp_path / "file.txt", []
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("new")
        seen.append(target.read_text())

    write_atomically(target, write)
    assert seen == ["old"]


def test_replace_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    fresh, target = tmp_path / "fresh", tmp_path / "target"
    for folder, name in ((fresh, "new"), (target, "old")):
        folder.mkdir()
        (folder / name).write_text(name)
    replace_folder(fresh, target)
    assert names(target) == ["new"]
    assert (target / "new").read_text() == "new"
    assert ".target.old" not in names(tmp_path)


def test_replace_folder_makes_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "file").write_text("x")
    replace_folder(tmp_path / "fresh", tmp_path / "target")
    assert names(tmp_path / "target") == ["file"]
