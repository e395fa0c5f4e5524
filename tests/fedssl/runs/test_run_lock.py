"""Who may write into a run folder."""

import fcntl
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from fedssl.comparison.run import find_folders
from fedssl.runs.run_folder import latest_run_folder, new_run_folder, open_run_folder
from fedssl.runs.run_lock import LOCK, FolderHeldError, check_free, held, made


def test_a_held_folder_is_refused_with_its_holder(tmp_path: Path) -> None:
    with held(tmp_path):
        who = f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since 20"
        for _ in range(2):
            with pytest.raises(FolderHeldError, match=who), held(tmp_path):
                pass
            with pytest.raises(FolderHeldError, match=who):
                check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    check_free(tmp_path)
    check_free(tmp_path / "absent")


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with held(tmp_path):
            os.write(writing, b".")
            signal.pause()
    os.read(reading, 1)
    with pytest.raises(FolderHeldError, match=f"process {child} "):
        check_free(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists()
    with held(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()


def test_a_lock_that_its_holder_deletes_meanwhile_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks, flock = [], fcntl.flock

    def delete_first(*arguments: int) -> None:
        if not locks:
            (tmp_path / LOCK).unlink()
        locks.append(flock(*arguments))

    monkeypatch.setattr(fcntl, "flock", delete_first)
    with held(tmp_path), pytest.raises(FolderHeldError), held(tmp_path):
        pass
    assert len(locks) == 2


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == f"{tmp_path} cannot be locked on this file system: start no second run in it\n"


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(parent: Path) -> Path:
        folder = new_run_folder(parent)
        time.sleep(0.02)  # the others find the same number free in the meantime
        return folder

    monkeypatch.setattr("fedssl.runs.run_folder.new_run_folder", slowly)
    together = Barrier(8, timeout=60)

    def run(_: int) -> str:
        together.wait()
        with open_run_folder(None, None, tmp_path / "runs" / "lw") as folder:
            together.wait()
            return folder.name

    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(run, range(8)))
    assert sorted(names) == [f"{number:04d}" for number in range(8)]
    assert list(tmp_path.rglob("0*")) == []


def test_only_what_the_run_made_and_left_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with open_run_folder(str(tmp_path / "mine"), None, tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), made(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    with made(tmp_path / "runs" / "lw" / "0000") as folder:
        (folder / "config.yaml").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "runs"]
    assert (folder / "config.yaml").exists()


def test_a_folder_that_a_killed_run_only_claimed_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "0000").mkdir()
    (tmp_path / "0000" / LOCK).write_text("process 1 on nowhere since 2020-01-01 00:00:00\n")
    assert latest_run_folder(tmp_path) is None
    with pytest.raises(ValueError, match="there is no run in"):
        find_folders([tmp_path])
    with open_run_folder(None, None, tmp_path) as folder:
        assert folder.name == "0001"
    with open_run_folder(str(tmp_path / "0000"), None, tmp_path) as folder:
        assert folder.name == "0000"


def test_what_a_folder_holds_is_not_judged_while_another_run_is_at_work_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with held(tmp_path), pytest.raises(FolderHeldError), open_run_folder(str(tmp_path), None, tmp_path):
        pass
