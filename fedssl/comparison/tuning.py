"""Tuning: runs that show which settings suit each row, with the same choices for every row."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedssl.comparison.equal_cost import validation
from fedssl.comparison.grid import Grid, GridRun, plan_grid
from fedssl.comparison.run import TUNING, Configuration
from fedssl.comparison.runner import run_missing, run_of
from fedssl.comparison.trials import Trial
from fedssl.runs.changed_settings import flatten


def plan_tuning(grid: Grid, parent: Path) -> list[list[list[GridRun]]]:
    """Plan the tuning runs, by row, choice and tuning seed; nothing if the grid tunes nothing.

    Raises:
        ValueError: ``fit`` would refuse a run, two choices are the same, or a run would not be validated.
    """
    if not grid.tune:
        return []
    planned = plan_grid(grid.tuning(), parent / TUNING)
    for run in (runs[0] for runs in planned):
        check_validated(run.name, run.configuration)
    choices = len(planned) // len(grid.rows())
    return [planned[start : start + choices] for start in range(0, len(planned), choices)]


def tune(grid: Grid, planned: list[list[list[GridRun]]], jobs: int) -> list[list[Trial]]:
    """Run the missing tuning runs and read all of them.

    Args:
        grid: Grid of the comparison.
        planned: Result of ``plan_tuning``.
        jobs: Number of runs at a time.

    Returns:
        Trials by row.
    """
    runs = [run for row in planned for trial in row for run in trial]
    if runs:
        print(f"tuning: {len(runs)} runs", file=sys.stderr)
    failed = run_missing(sorted(runs, key=lambda run: run.seed), jobs) if runs else {}
    names = [{axis: labels[axis] for axis in grid.tune} for labels, _ in grid.tuning().rows()] if runs else []
    every = iter(names)
    return [[_trial(next(every), trial, failed) for trial in row] for row in planned]


def _trial(choices: dict[str, str], runs: Sequence[GridRun], failed: dict[Path, str]) -> Trial:
    found = {run.seed: validation(run_of(run, failed)) for run in runs if run.folder not in failed}
    known = [knn for knn in found.values() if knn is not None]
    lost = [seed for seed in (run.seed for run in runs) if found.get(seed) is None]
    why = {run.seed: failed.get(run.folder, "no evaluation") for run in runs}
    return Trial(choices, [] if lost else known, "; ".join(f"seed {seed}: {why[seed]}" for seed in lost))


def check_validated(name: str, configuration: Configuration) -> None:
    """Check that a run measures kNN on images that are not the test images, at least once.

    Args:
        name: Display name of the run.
        configuration: All settings of the run.

    Raises:
        ValueError: It does not.
    """
    settings = flatten(configuration)
    splits = [settings.get(f"data.eval_{part}_split") for part in ("train", "test")]
    if None in splits:
        raise ValueError(f"{name}: tune chooses by the kNN on validation images, but {settings['data']} has none")
    if splits[0] == splits[1]:
        raise ValueError(
            f"{name}: tune needs validation images other than the test images, but --data.eval_train_split and "
            f"--data.eval_test_split are both {splits[0]!r}"
        )
    every, rounds = settings["trainer.check_val_every_n_epoch"], settings["trainer.max_epochs"]
    if settings["trainer.limit_val_batches"] == 0 or not every or (rounds and every > rounds):
        raise ValueError(
            f"{name}: tune needs an evaluation during the run: --trainer.check_val_every_n_epoch must be at most "
            f"{rounds}, got {every}, and --trainer.limit_val_batches not 0"
        )
