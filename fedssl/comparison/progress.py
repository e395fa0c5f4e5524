"""Progress of a set of runs: bars in a terminal, a line a run elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

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

from fedssl.comparison.grid import PlannedRun


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
