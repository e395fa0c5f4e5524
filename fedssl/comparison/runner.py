"""Starts or resumes the runs of a set that have not ended yet, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedssl.comparison.configuration import read_results
from fedssl.comparison.grid import PlannedRun
from fedssl.runs.run_folder import CHECKPOINTS
from fedssl.runs.run_lock import check_free
from fedssl.training.checkpoints import checkpoints_of
from fedssl.training.run_progress import shortfall
from fedssl.training.signals import Ended

LOG = "log.txt"
CODE = (
    "from fedssl.training.signals import end_with_parent; end_with_parent(); from fedssl.__main__ import main; main()"
)
COMMAND = (sys.executable, "-c", CODE, "fit")
PACKAGES = Path(__file__).parents[2]
POLL = 0.1
PATIENCE = 5
"""Seconds that interrupted runs have to end by themselves before they are asked to."""
GRACE = 20
"""Seconds that they have then, W&B's last words included, before they are killed."""


def run_missing(runs: Sequence[PlannedRun], jobs: int) -> dict[Path, str]:
    """Runs what has no results yet.

    Output goes to ``log.txt`` in each run's folder. A run that fails does not stop the others. Several runs at a time
    divide the cores among them, unless ``OMP_NUM_THREADS`` says how many threads each has.

    Args:
        runs: Those that are done are left alone.
        jobs: Runs at a time.

    Returns:
        Why runs failed, by their folders.

    Raises:
        ValueError: ``jobs`` is below 1, or another process is at work in the folder of a run; nothing has been started.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    waiting = [run for run in runs if not run.done]
    for run in waiting:
        check_free(run.folder)
    running: list[_Process] = []
    failed: dict[Path, str] = {}
    with SetProgress(waiting, done=len(runs) - len(waiting)) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_Process(waiting.pop(0), jobs))
                    progress.started(running[-1].run)
                time.sleep(POLL)
                for process in [process for process in running if process.ended]:
                    running.remove(process)
                    reason = process.reason()
                    failed |= {process.run.folder: reason} if reason else {}
                    progress.ended(process.run, reason)
                progress.update({process.run.folder: rounds_done(process.run.folder) for process in running})
        except Ended:
            _end(running, patience=0)  # the signal went to this process alone
            raise
        finally:
            _end(running, PATIENCE)  # Ctrl-C in a terminal has reached them already
    return failed


def rounds_done(folder: Path) -> int:
    """Rounds (or epochs) after which a run's newest checkpoint was written."""
    found = [int(path.stem) + 1 for path in checkpoints_of(folder / CHECKPOINTS) if path.stem.isdigit()]
    return max(found, default=0)


def reason_of_failure(log: Path, code: int) -> str:
    """The last error message in a log, or its last line, or how the process ended."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; its output is in {log}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [f"exit status {code}"])[-1]


class _Process:
    """A run in a process of its own; a run that was interrupted goes on from its newest checkpoint."""

    def __init__(self, run: PlannedRun, jobs: int) -> None:
        self.run = run
        run.folder.mkdir(parents=True, exist_ok=True)
        where = [f"--run_dir={run.folder}", "--ckpt_path=auto"]
        command = [*COMMAND, *run.arguments, f"--seed_everything={run.seed}", *where]
        with (run.folder / LOG).open("w") as log:
            self._process = _start(command, log, jobs)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def reason(self) -> str | None:
        """Why it failed; ``None`` if it did not."""
        code = self._process.returncode
        lacks = "" if code else shortfall(read_results(self.run.folder))
        return lacks or (reason_of_failure(self.run.folder / LOG, code) if code or not self.run.done else None)

    def end(self) -> None:
        """Asks it to end, and kills it if it does not; its last checkpoint stays."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end(running: Sequence[_Process], patience: float) -> None:
    """Ends the runs at work, after the time in which they may end by themselves."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not all(process.ended for process in running):
        time.sleep(POLL)
    for process in running:
        if not process.ended:
            process.end()


def _start(command: list[str], log: IO[str], jobs: int) -> subprocess.Popen[bytes]:
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = threads | os.environ | {"PYTHONPATH": path}
    # Nothing is ever written to its standard input: that it closes is how a run learns that this process has died.
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, env=environment)


class SetProgress:
    """Shows how many rounds of all runs are over, and those of the runs at work.

    Args:
        runs: What is to be run.
        done: Runs of the set that are done already.
    """

    def __init__(self, runs: Sequence[PlannedRun], done: int) -> None:
        self._console = Console(file=sys.stderr)
        self._rounds = {run.folder: int(run.configuration["trainer"]["max_epochs"] or 1) for run in runs}
        self._over: dict[Path, int] = dict.fromkeys(self._rounds, 0)
        self._tasks: dict[Path, TaskID] = {}
        self._counts = [done, done + len(runs)]
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._all = self._progress.add_task(self._title(), total=sum(self._rounds.values()))

    def __enter__(self) -> SetProgress:
        self._console.print(f"{self._counts[0]} of {self._counts[1]} runs are done already", highlight=False)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if isinstance(error, KeyboardInterrupt):
            self._console.print("stopped; the same command goes on", highlight=False)

    def started(self, run: PlannedRun) -> None:
        """A run has begun or goes on."""
        total = self._rounds[run.folder]
        self._tasks[run.folder] = self._progress.add_task(f"  {run.name}, seed {run.seed}: rounds", total=total)

    def update(self, rounds: dict[Path, int]) -> None:
        """The rounds that runs at work have done."""
        self._over |= rounds
        for folder, over in rounds.items():
            self._progress.update(self._tasks[folder], completed=over)
        self._progress.update(self._all, completed=sum(self._over.values()))

    def ended(self, run: PlannedRun, failure: str | None) -> None:
        """A run is over.

        Args:
            run: Which.
            failure: Why it failed, if it did.
        """
        self._over[run.folder] = self._rounds[run.folder]
        self._counts[0] += 1
        self._progress.remove_task(self._tasks.pop(run.folder))
        self._progress.update(self._all, description=self._title())
        said = f"failed: {failure}" if failure else "done"
        count = f"{self._counts[0]}/{self._counts[1]}"
        self._console.print(
            f"{count} {run.name}, seed {run.seed}: {said}", highlight=False, markup=False, soft_wrap=True
        )

    def _title(self) -> str:
        return f"runs {self._counts[0]}/{self._counts[1]}, rounds"
