"""Runs that meet another run in their folder, a signal, the end of their time or a damaged metrics file."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import gethostname
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import write_record
from fedssl.runs.run_folder import RESULTS
from fedssl.runs.run_lock import FolderHeldError, check_free
from fedssl.training.checkpoints import checkpoints_of, read_checkpoint
from fedssl.training.tracking import read_rows

ROOT = Path(__file__).parents[2]
NAME = "reliability_signals"
NOTES = """
Whole processes with one thread each: two blocks of width 16, 60 digits, 3 clients. Status is the exit status of a
shell's `$?`, negative for a process that a signal ended without its say. Seconds are from the signal to the end of the
process (under `compare` to the end of both), on one core with about ten other processes at work: they show that it
ends, not how fast. Kinds that the file has are not measured again. "Checkpoint good": it could be read.
"""
ENCODER = '{"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "global_pool": "avg"}'
SMALL = ["-c", "lw_fedssl.yaml", "--model.encoder.options", ENCODER, "--model.method.hidden_dim=16"]
SMALL += ["--model.method.output_dim=8", "--data.train_images=60", "--data.clients=3", "--model.batch_size=8"]
SMALL += ["--model.local_epochs=1", "--trainer.check_val_every_n_epoch=1000"]
QUIET = "--trainer.logger=false"
LONG, SHORT = "--model.rounds=2000", "--model.rounds=12"
AUTO = "--ckpt_path=auto"
Row = dict[str, Any]


def add_commands(commands: Any) -> None:
    """Adds ``reliability_signals``."""
    parser = commands.add_parser(NAME, help="locks, signals, damaged metrics and W&B after kills")
    parser.add_argument("--trials", type=int, default=1, help="of each kind")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures every kind that the result file does not have yet, and writes the file anew after each."""
    path = results / f"{NAME}.json"
    found: dict[str, list[Row]] = json.loads(path.read_text())["data"] if path.exists() else {}
    notes = f"{NOTES}Trials of each kind: {arguments.trials}.\n"
    for kind in (_ended, _comparisons, _same_folder, _together, _wandb, _metrics, _ranks, _out_of_time):
        if kind.__name__ in found:
            continue
        rows: list[Row] = []
        for _ in range(arguments.trials):
            with TemporaryDirectory() as scratch:
                for row in kind(Path(scratch)):
                    print(row, flush=True)
                    rows.append(
                        {
                            key: str(value).replace(scratch, "DIR").replace(gethostname(), "HOST")
                            for key, value in row.items()
                        }
                    )
        found[kind.__name__] = rows
        table = [row for rows in found.values() for row in rows]
        write_record(results, NAME, "Locks, signals and what is left", table, found, notes)


def _start(folder: Path, *arguments: str, launcher: tuple[str, ...] = ("train.py", "fit")) -> subprocess.Popen[str]:
    """A process whose output goes to ``FOLDER.txt``, outside of the folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    with folder.with_suffix(".txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, *launcher, *arguments],
            text=True,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def _fit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return _start(folder, *SMALL, f"--run_dir={folder}", *arguments)


def _wait(ready: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    while not ready() and (process is None or process.poll() is None):
        time.sleep(0.05)


def _at_work(folder: Path, process: subprocess.Popen[str], checkpoints: int = 2) -> None:
    _wait(lambda: len(checkpoints_of(folder / "checkpoints")) >= checkpoints, process)


def _said(folder: Path, *words: str) -> str:
    """The last line that was printed with one of these words in it."""
    lines = folder.with_suffix(".txt").read_text().splitlines()
    return next((line for line in reversed(lines) if any(word in line for word in words)), "nothing")


def _row(what: str, status: Any, outcome: str, seconds: float | None = None) -> Row:
    return {"what": what, "status": status, "seconds": "" if seconds is None else f"{seconds:.1f}", "outcome": outcome}


def _together(scratch: Path) -> Iterator[Row]:
    for where in ((), (f"--run_dir={scratch / 'same'}",)):
        code = f"import os; os.chdir({str(scratch)!r}); from fedssl.__main__ import main; main()"
        command = ("-c", code, "fit")
        runs = [
            _start(scratch / f"{seed}", *SMALL, SHORT, QUIET, f"--seed_everything={seed}", *where, launcher=command)
            for seed in range(2)
        ]
        statuses = sorted(run.wait() for run in runs)
        found = sorted(str(path.parent.relative_to(scratch)) for path in scratch.rglob(RESULTS))
        refused = [said for seed in range(2) if "in use" in (said := _said(scratch / f"{seed}", "in use"))]
        name = "two fits started together, same --run_dir" if where else "two fits started together"
        yield _row(name, statuses, f"results in {', '.join(found)}" + (f"; {refused[0]}" if refused else ""))
        shutil.rmtree(scratch / "runs", ignore_errors=True)


def _same_folder(scratch: Path) -> Iterator[Row]:
    folder = scratch / "run"
    first = _fit(folder, LONG, QUIET)
    _at_work(folder, first)
    for resume in ("--ckpt_path=last", AUTO):
        yield _row(
            f"fit {resume} beside the living run", _fit(folder, LONG, QUIET, resume).wait(), _said(folder, "use")
        )
    first.kill()
    first.wait()
    pair = [_fit(folder, LONG, QUIET, AUTO) for _ in range(2)]
    _wait(lambda: any(process.poll() is not None for process in pair))
    yield _row("two resumes of a killed run", sorted(str(run.poll()) for run in pair), _said(folder, "in use"))
    for process in pair:
        process.kill()
        process.wait()


def _ended(scratch: Path) -> Iterator[Row]:
    for name, times in (("SIGTERM", 1), ("SIGUSR1", 1), ("SIGHUP", 1), ("SIGINT", 1), ("SIGINT", 2), ("SIGKILL", 1)):
        folder = scratch / f"{name}{times}"
        process = _fit(folder, LONG)
        _at_work(folder, process)
        begun = time.perf_counter()
        for _ in range(times):
            process.send_signal(signal.Signals[name])
            time.sleep(0.2 if times > 1 else 0)
        status, seconds = process.wait(), time.perf_counter() - begun
        outcome = f"{_said(folder, 'stopped')}; {_readable(folder)}"
        yield _row(f"{name}{' twice' * (times > 1)}, with W&B", status, outcome, seconds)


def _readable(folder: Path) -> str:
    read_checkpoint(checkpoints_of(folder / "checkpoints")[-1])
    return "last checkpoint good"


def _free(folder: Path) -> bool:
    try:
        check_free(folder)
    except FolderHeldError:
        return False
    return True


def _out_of_time(scratch: Path) -> Iterator[Row]:
    process = _fit(scratch / "run", LONG, QUIET, "--trainer.max_time=00:00:00:03")
    status = process.wait()
    outcome = f"{_said(scratch / 'run', 'max_time')}; results.json {(scratch / 'run' / RESULTS).exists()}"
    yield _row("trainer.max_time", status, outcome)


def _comparisons(scratch: Path) -> Iterator[Row]:
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"):
        parent = scratch / name
        settings = " ".join(f"'{each}'" for each in (*SMALL[2:], LONG, QUIET))
        axes = '--axes={"a": {"b": "-c lw_fedssl.yaml"}}', f"--settings={settings}"
        process = _start(parent, *axes, f"--folder={parent}", launcher=("train.py", "compare"))
        folder = parent / "b-seed0"
        _at_work(folder, process)
        begun = time.perf_counter()
        process.send_signal(signal.Signals[name])
        status = process.wait()
        _wait(lambda run=folder: _free(run))
        seconds = time.perf_counter() - begun
        last = (folder / "log.txt").read_text().splitlines()[-1]
        yield _row(f"{name} to compare", status, f"its run: {last}; {_readable(folder)}", seconds)


def _ranks(scratch: Path) -> Iterator[Row]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", "fit")
    for name, whom in (("SIGKILL", "rank 0"), ("SIGKILL", "rank 1"), ("SIGTERM", "torchrun")):
        folder = scratch / whom.replace(" ", "")
        process = _start(folder, *SMALL, f"--run_dir={folder}", LONG, QUIET, launcher=launcher)
        _at_work(folder, process)
        lock = folder / "lock"
        zero = int(lock.read_text().split()[1])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        victim = {"rank 0": zero, "rank 1": next(int(pid) for pid in children if int(pid) != zero)}.get(
            whom, process.pid
        )
        begun = time.perf_counter()
        os.kill(victim, signal.Signals[name])
        status, seconds = process.wait(), time.perf_counter() - begun
        left = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        outcome = f"{_said(folder, 'error:', 'stopped')}; ranks left {len(left)}; {_readable(folder)}"
        yield _row(f"{name} to {whom} of two ranks", status, outcome, seconds)


def _metrics(scratch: Path) -> Iterator[Row]:
    whole = scratch / "whole"
    process = _fit(whole, LONG, QUIET)
    _at_work(whole, process)
    _wait(lambda: len(read_rows(whole / "metrics.csv")[0]) >= 4, process)
    process.kill()
    process.wait()
    rows = (whole / "metrics.csv").read_bytes().splitlines(keepends=True)
    kinds: dict[str, bytes | None] = {
        "missing": None,
        "torn in the step": b"".join([*rows, b"2"]),
        "torn in the middle of a row": b"".join([*rows[:-1], rows[-1][:30]]),
        "garbage": b"".join([*rows, b"x\x07\xfe\n"]),
        "NUL bytes": b"".join([*rows, bytes(512)]),
        "garbage in the middle": b"".join([*rows[:2], b"x,y\r\n", *rows[2:]]),
        "a row overwritten by NUL bytes": b"".join([rows[0], bytes(len(rows[1])), *rows[2:]]),
        "empty": b"",
    }
    for name, text in kinds.items():
        folder = scratch / name.replace(" ", "_")
        shutil.copytree(whole, folder)
        (folder / "metrics.csv").unlink()
        if text is not None:
            (folder / "metrics.csv").write_bytes(text)
        again = _fit(folder, LONG, QUIET, AUTO)
        before = newest = checkpoints_of(folder / "checkpoints")[-1]
        while newest == before and again.poll() is None:
            time.sleep(0.05)
            newest = checkpoints_of(folder / "checkpoints")[-1]
        goes_on = again.poll() is None
        again.terminate()
        outcome = f"{_said(folder, 'metrics.csv')}; damaged lines now {len(read_rows(folder / 'metrics.csv')[1])}"
        yield _row(f"metrics.csv: {name}", "goes on" if goes_on else again.wait(), outcome)
        again.wait()


def _wandb(scratch: Path) -> Iterator[Row]:
    folder = scratch / "run"
    for kill in range(3):
        process = _fit(folder, "--model.rounds=60", AUTO)
        _wait(lambda at=10 * kill + 8: (folder / f"checkpoints/{at:05d}.ckpt").exists(), process)
        process.kill()
        process.wait()
    status = _fit(folder, "--model.rounds=60", AUTO).wait()
    held = [_rounds(path, scratch) for path in sorted(folder.glob("wandb/offline-run-*"))]
    last = "every round once, in order" if held[-1] == [float(at) for at in range(60)] else f"rounds {held[-1]}"
    earlier = ", ".join(str(len(rounds)) for rounds in held[:-1])
    yield _row("W&B offline, 60 rounds, 3 times SIGKILL", status, f"last file: {last}; earlier files: {earlier} rounds")


def _rounds(path: Path, scratch: Path) -> list[float]:
    """The rounds whose training an offline W&B run has, as the tests read it."""
    alone = scratch / path.name
    shutil.copytree(path, alone / "wandb" / path.name)
    history = runpy.run_path(str(ROOT / "tests" / "wandb_file.py"))["history"]
    return [row["round"] for row in history(alone) if "client/loss" in row]
