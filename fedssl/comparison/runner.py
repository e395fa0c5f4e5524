"""Runner of a comparison: starts or resumes unfinished runs, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn

from fedssl.comparison.grid import GridRun
from fedssl.comparison.run import Run, rounds_done
from fedssl.runs.run_folder import read_results
from fedssl.runs.run_lock import check_free
from fedssl.training.endings import Ended, shortfall

LOG = "log.txt"
# Not ``-m fedssl``: only a run that a comparison starts has a parent to end with.
CODE = (
    "from fedssl.training.endings import end_with_parent; end_with_parent(); from fedssl.__main__ import main; main()"
)
COMMAND = (sys.executable, "-c", CODE, "fit")
PACKAGES = Path(__file__).parents[2]
POLL = 0.1
PATIENCE = 5
"""Seconds that interrupted runs have to end by themselves before they get a SIGTERM."""
GRACE = 20
"""Seconds that they have after the SIGTERM, for W&B's clean-up too, before they are killed."""


def run_missing(runs: Sequence[GridRun], jobs: int) -> dict[Path, str]:
    """Run the runs that have no results yet.

    Output goes to ``log.txt`` in each run's folder. A run that fails does not stop the others. Several runs at a time
    divide the cores among them, unless ``OMP_NUM_THREADS`` sets the threads of each.

    Args:
        runs: Planned runs; those that are done are left alone.
        jobs: Number of runs at a time.

    Returns:
        Reasons of failed runs, by folder.

    Raises:
        ValueError: ``jobs`` is below 1, or another process trains in the folder of a run; nothing has been started.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    waiting = [run for run in runs if not run.done]
    for run in waiting:
        check_free(run.folder)
    running: list[_Process] = []
    failed: dict[Path, str] = {}
    with RunsProgress(waiting, done=len(runs) - len(waiting)) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_Process(waiting.pop(0), jobs))
                    progress.begin(running[-1].run)
                time.sleep(POLL)
                for process in [process for process in running if process.ended]:
                    running.remove(process)
                    reason = process.reason()
                    failed |= {process.run.folder: reason} if reason else {}
                    progress.end(process.run, reason)
                progress.show({process.run.folder: rounds_done(process.run.folder) for process in running})
        except Ended:
            _end(running, patience=0)  # the signal went to this process alone
            raise
        finally:
            _end(running, PATIENCE)  # Ctrl-C in a terminal has reached them already
    return failed


def run_of(planned: GridRun, failed: dict[Path, str]) -> Run:
    """Read a planned run after the comparison has tried to run it.

    Args:
        planned: Planned run.
        failed: Reasons of failed runs, by folder.
    """
    results = read_results(planned.folder)
    failure = failed.get(planned.folder) or shortfall(results)
    return Run(planned.folder, planned.configuration, {} if failure else results, failure)


def reason_of_failure(log: Path, code: int) -> str:
    """Name the reason of a failure: the signal, the last error message or line of the log, or the exit status."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; its output is in {log}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [f"exit status {code}"])[-1]


class _Process:
    """Run in a process of its own; an interrupted run continues from its newest checkpoint."""

    def __init__(self, run: GridRun, jobs: int) -> None:
        self.run = run
        run.folder.mkdir(parents=True, exist_ok=True)
        # ``auto`` begins or goes on, whatever an earlier comparison has left in the folder.
        where = [f"--run_dir={run.folder}", "--ckpt_path=auto"]
        command = [*COMMAND, *run.arguments, f"--seed_everything={run.seed}", *where]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        # The runs use the code that compares them, even where another version is installed.
        path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = threads | os.environ | {"PYTHONPATH": path}
        with (run.folder / LOG).open("w") as log:
            # Nothing is ever written to the run's standard input. The pipe closes when this process dies, even by
            # SIGKILL, and that ends the run.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, env=environment
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def reason(self) -> str | None:
        """Return the reason of the failure; ``None`` for a run that is done."""
        code = self._process.returncode
        lacks = "" if code else shortfall(read_results(self.run.folder))
        return lacks or (reason_of_failure(self.run.folder / LOG, code) if code or not self.run.done else None)

    def terminate(self) -> None:
        """Ask the process to end; its last checkpoint stays."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _end(running: Sequence[_Process], patience: float) -> None:
    """End the running processes, after the time in which they may end by themselves."""
    _wait(running, patience)
    # All of them before the wait, so that they share its time.
    for process in running:
        process.terminate()
    _wait(running, GRACE)
    for process in running:
        process.kill()


def _wait(running: Sequence[_Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(process.ended for process in running):
        time.sleep(POLL)


class RunsProgress(Progress):
    """Progress display: rounds of all runs together, and of each current run.

    Args:
        runs: Runs to do.
        done: Number of runs that are done already.
    """

    def __init__(self, runs: Sequence[GridRun], done: int) -> None:
        console = Console(file=sys.stderr)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__("{task.description}", *columns, console=console, disable=not console.is_terminal)
        self._rounds = {run.folder: int(run.configuration["trainer"]["max_epochs"] or 1) for run in runs}
        self._over = dict.fromkeys(self._rounds, 0)
        self._bars: dict[Path, TaskID] = {}
        self._ended, self._runs = done, done + len(runs)
        self._all = self.add_task(self._title(), total=sum(self._rounds.values()))
        console.print(f"{done} of {self._runs} runs are done already", highlight=False)

    def begin(self, run: GridRun) -> None:
        """Show a run that has begun or continues."""
        text = f"  {run.name}, seed {run.seed}: rounds"
        self._bars[run.folder] = self.add_task(text, total=self._rounds[run.folder])

    def show(self, rounds: dict[Path, int]) -> None:
        """Show the rounds that the current runs have done."""
        self._over |= rounds
        for folder, over in rounds.items():
            self.update(self._bars[folder], completed=over)
        self.update(self._all, completed=sum(self._over.values()))

    def end(self, run: GridRun, failure: str | None) -> None:
        """Print the end of a run, with the reason of a failure."""
        self._over[run.folder] = self._rounds[run.folder]
        self._ended += 1
        self.remove_task(self._bars.pop(run.folder))
        self.update(self._all, description=self._title())
        said = f"{self._ended}/{self._runs} {run.name}, seed {run.seed}: {f'failed: {failure}' if failure else 'done'}"
        self.console.print(said, highlight=False, markup=False, soft_wrap=True)

    def _title(self) -> str:
        return f"runs {self._ended}/{self._runs}, rounds"
