"""Command ``train.py compare``: runs the missing runs of a grid, or reads runs from folders, and prints tables."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console

from fedssl.cli.arguments import run_name
from fedssl.cli.errors import brief
from fedssl.comparison.comparison_report import comparison_page
from fedssl.comparison.grid import Grid, plan_grid
from fedssl.comparison.rows import Row, check_reference, group_runs
from fedssl.comparison.run import find_folders, read_run
from fedssl.comparison.runner import run_missing, run_of
from fedssl.comparison.table import as_csv, as_markdown, for_terminal, make_tables
from fedssl.comparison.trials import best
from fedssl.comparison.tuning import plan_tuning, tune
from fedssl.runs.report.run_report import REPORT
from fedssl.training.endings import status_of
from fedssl.utils.files import write_text

DESCRIPTION = """
Compares runs. With -c FILE: every combination of choices on the axes, with every seed; runs what is missing, resumes
what was interrupted, skips what is done. With run folders, or folders that hold some: compares what is in them.
"""

UNTUNED = "none of its tuning runs has ended"
REFERENCE_HELP = "row, or choice on an axis, that accuracies are set against; by default end-to-end training"
FOLDER_HELP = (
    "where runs, table.md, table.csv and report.html are written; by default runs/<name of the configuration>, and "
    "nowhere for run folders"
)


def compare(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: Arguments after ``compare``.

    Returns:
        Exit status: 1 if a run of the comparison failed, 128 + the number of the signal that ended it.

    Raises:
        ValueError: The command or one of its runs is refused; nothing has been started.
    """
    options = _parse(arguments)
    try:
        rows = _rows(options)
    except KeyboardInterrupt as interrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return status_of(interrupt)
    show(rows, options.folder, shlex.join(["python", "train.py", "compare", *arguments]), options.reference)
    failed = any(row.failures or any(trial.failure for trial in row.trials) for row in rows)
    return int(bool(options.axes) and failed)


def show(rows: list[Row], folder: Path | None, command: str, called: str | None = None) -> None:
    """Print the tables and write them to files.

    Args:
        rows: Rows of the comparison.
        folder: Folder for ``table.md``, ``table.csv`` and ``report.html``; ``None`` writes nothing.
        command: Command that reproduces the files.
        called: Name or label of the row that differences are taken to; ``None`` for end-to-end training.
    """
    console = Console()
    tables = make_tables(rows, called)
    for table in tables:
        console.print(table.headline, highlight=False)
        for each in (for_terminal(table), *table.further):
            console.print(each.rich(console.width))
    if folder is None:
        return
    write_text(folder / "table.md", as_markdown(tables, command))
    write_text(folder / "table.csv", as_csv(rows, called))
    write_text(folder / REPORT, comparison_page(tables, rows, command))
    console.print(f"everything is in {folder}", highlight=False, soft_wrap=True)


def run_grid(grid: Grid, folder: Path, jobs: int) -> list[Row]:
    """Run what is missing of a grid, the tuning first, and read all runs.

    Args:
        grid: Grid of the comparison.
        folder: Parent of the run folders.
        jobs: Number of runs at a time.

    Raises:
        ValueError: One of the runs is refused; nothing has been started.
    """
    labels = [labels for labels, _ in grid.rows()]
    # Any choice will do to check the runs themselves before the tuning starts.
    first = [{axis: next(iter(choices)) for axis, choices in grid.tune.items()}] * len(labels)
    planned = plan_grid(grid, folder, first)
    trials = tune(grid, plan_tuning(grid, folder), jobs) or [[]] * len(labels)
    taken = [best(each) for each in trials]
    chosen = [found.choices if found else before for found, before in zip(taken, first, strict=True)]
    planned = planned if chosen == first else plan_grid(grid, folder, chosen)
    untuned = [row for row, tried, found in zip(planned, trials, taken, strict=True) if tried and not found]
    lost = {run.folder: UNTUNED for row in untuned for run in row}
    # Seed by seed: a comparison that is stopped early has every row once, and not some rows with all seeds.
    runs = sorted((run for row in planned for run in row if run.folder not in lost), key=lambda run: run.seed)
    failed = lost | run_missing(runs, jobs)
    return [
        Row(each, [run_of(run, failed) for run in row], tried)
        for each, row, tried in zip(labels, planned, trials, strict=True)
    ]


def _rows(options: Namespace) -> list[Row]:
    if options.axes:
        grid = Grid(*(options[each.name] for each in fields(Grid)))
        check_reference(options.reference, [labels for labels, _ in grid.rows()])
        return run_grid(grid, options.folder, options.jobs)
    rows = group_runs([read_run(folder) for folder in find_folders(options.runs)])
    check_reference(options.reference, [row.labels for row in rows])
    return rows


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(prog="train.py compare", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the settings below")
    parser.add_argument("runs", nargs="*", type=str, metavar="RUN_DIR", help="folders to compare instead")
    parser.add_class_arguments(Grid)
    parser.add_argument("--reference", type=str | None, default=None, help=REFERENCE_HELP)
    parser.add_argument("--folder", type=str | None, default=None, help=FOLDER_HELP)
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="runs at a time")
    try:
        options = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(brief(str(error))) from error
    if bool(options.runs) == bool(options.axes):
        raise ValueError("compare needs either -c FILE with axes, or run folders: train.py compare --help")
    if options.folder is not None:
        options.folder = Path(options.folder)
    elif options.axes:
        options.folder = Path("runs") / run_name(arguments)
    options.runs = [Path(run) for run in options.runs]
    return options
