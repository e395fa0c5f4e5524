"""Sets of runs: what is started, resumed, skipped and reported. The runs themselves are stand-ins."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedssl.comparison import runner
from fedssl.comparison.grid import GridRun
from fedssl.comparison.runner import reason_of_failure, rounds_done, run_missing
from fedssl.runs.run_lock import FolderHeldError, held
from fedssl.training.endings import Ended

STAND_IN = """
import json, sys
from pathlib import Path
arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
if "--fail" in arguments:
    sys.exit("error: no memory\\n(FEDSSL_DEBUG=1 shows where)")
if "--crash" in arguments:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
folder = Path(arguments["--run_dir"])
(folder / "config.yaml").write_text("")
if "--empty" not in arguments:
    found = {"arguments": sys.argv[1:], "finished": "--short" not in arguments, "rounds_done": 1, "rounds_planned": 4}
    (folder / "results.json").write_text(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", STAND_IN))


def planned(folder: Path, *arguments: str, seed: int = 0) -> GridRun:
    return GridRun(folder.name, list(arguments), seed, folder, {"trainer": {"max_epochs": 4}})


def started_with(run: GridRun) -> list[str]:
    return json.loads((run.folder / "results.json").read_text())["arguments"]


def test_what_is_missing_is_run(tmp_path: Path) -> None:
    runs = [planned(tmp_path / name, "--x=1", seed=seed) for seed, name in enumerate("abc")]
    assert run_missing(runs, jobs=2) == {}
    assert all(run.done for run in runs)
    assert started_with(runs[2]) == ["--x=1", "--seed_everything=2", f"--run_dir={tmp_path / 'c'}", "--ckpt_path=auto"]


def test_what_is_done_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path / "a")
    run.folder.mkdir()
    (run.folder / "results.json").write_text("{}")
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    assert run_missing([run], jobs=1) == {}
    assert [path.name for path in run.folder.iterdir()] == ["results.json"]


def test_a_run_that_another_process_is_at_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    runs = [planned(tmp_path / "a"), planned(tmp_path / "b")]
    runs[1].folder.mkdir()
    with held(runs[1].folder), pytest.raises(FolderHeldError, match=f"b is in use by process {os.getpid()} on "):
        run_missing(runs, jobs=1)
    assert not runs[0].folder.exists()


def test_a_run_that_was_cut_short_is_no_result_and_goes_on(tmp_path: Path) -> None:
    run = planned(tmp_path / "a", "--short")
    assert run_missing([run], jobs=1) == {run.folder: "1 of 4 rounds"}
    assert run_missing([run], jobs=1) == {run.folder: "1 of 4 rounds"}
    assert "--ckpt_path=auto" in started_with(run)


def test_a_failure_is_reported_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [planned(tmp_path / "bad", "--fail"), planned(tmp_path / "crash", "--crash"), planned(tmp_path / "good")]
    failed = run_missing(runs, jobs=1)
    log = tmp_path / "crash" / "log.txt"
    assert failed == {
        tmp_path / "bad": "no memory",
        tmp_path / "crash": f"ended by SIGKILL; its output is in {log}",
    }
    assert runs[2].done
    said = capsys.readouterr().err
    assert "1/3 bad, seed 0: failed: no memory" in said
    assert "3/3 good, seed 0: done" in said


def test_a_run_without_results_has_failed(tmp_path: Path) -> None:
    assert run_missing([planned(tmp_path / "a", "--empty")], jobs=1) == {tmp_path / "a": "exit status 0"}


def test_runs_at_a_time_must_be_one_or_more(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        run_missing([planned(tmp_path / "a")], jobs=0)


WAITS = "import sys, time; open(sys.argv[2].partition('=')[2] + '/begun', 'w'); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


@pytest.mark.parametrize(("code", "ended_by"), [(WAITS, signal.SIGTERM), (DEAF, signal.SIGKILL)])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), Ended(signal.SIGTERM)])
def test_the_runs_at_work_end_with_the_comparison(
    interrupt: KeyboardInterrupt, code: str, ended_by: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", code))
    monkeypatch.setattr(runner, "PATIENCE", 0.2)
    monkeypatch.setattr(runner, "GRACE", 0.2)
    processes, started = [], runner.subprocess.Popen

    def remember(*arguments: object, **options: object) -> object:
        processes.append(started(*arguments, **options))
        return processes[-1]

    def wait_and_interrupt(*_: object) -> None:
        while not (tmp_path / "a" / "begun").exists():
            time.sleep(0.01)
        raise interrupt

    monkeypatch.setattr(runner.subprocess, "Popen", remember)
    monkeypatch.setattr(runner.RunsProgress, "show", wait_and_interrupt)
    with pytest.raises(type(interrupt)):
        run_missing([planned(tmp_path / "a"), planned(tmp_path / "b")], jobs=1)
    assert [process.returncode for process in processes] == [-ended_by]


def test_all_runs_share_the_time_in_which_they_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.0)
    said: list[str] = []
    deaf: Any = SimpleNamespace(ended=False, terminate=lambda: said.append("asked"), kill=lambda: said.append("killed"))
    runner._end([deaf, deaf], 0.0)
    assert said == ["asked", "asked", "killed", "killed"]


def test_rounds_are_counted_from_the_checkpoints(tmp_path: Path) -> None:
    assert rounds_done(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    for name in ("00003", "00004", "other"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    assert rounds_done(tmp_path) == 5


def test_a_checkpoint_that_vanishes_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "00002.ckpt").write_bytes(b"")
    (tmp_path / "checkpoints" / "00001.ckpt").symlink_to("deleted")
    assert rounds_done(tmp_path) == 3


def test_the_reason_is_the_last_error_or_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("1/4 loss 3\nTraceback\nKeyError: 'x'\n")
    assert reason_of_failure(log, 1) == "KeyError: 'x'"
    log.write_text("error: too little memory\n(FEDSSL_DEBUG=1 shows where)\n")
    assert reason_of_failure(log, 1) == "too little memory"
    log.write_text("")
    assert reason_of_failure(log, 3) == "exit status 3"
