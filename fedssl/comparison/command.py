"""Command ``train.py compare``: runs the missing runs of a grid, or reads runs from folders, and prints tables."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console

from fedssl.cli.arguments import run_name
from fedssl.cli.errors import brief
from fedssl.comparison.comparison_report import comparison_page
from fedssl.comparison.grid import Grid, plan_grid
from fedssl.comparison.rows import Row, group_runs
from fedssl.comparison.run import find_folders, read_run
from fedssl.comparison.runner import run_missing, run_of
from fedssl.comparison.table import as_csv, as_markdown, for_terminal, make_tables
from fedssl.runs.report.run_report import REPORT
from fedssl.training.endings import status_of
from fedssl.utils.files import write_text

DESCRIPTION = """
Compares runs. With -c FILE: every combination of choices on the axes, with every seed; runs what is missing, resumes
what was interrupted, skips what is done. With run folders, or folders that hold some: compares what is in them.
"""


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
        folders = [] if options.axes else find_folders(options.runs)
        rows = _rows_of_grid(options) if options.axes else group_runs([read_run(folder) for folder in folders])
    except KeyboardInterrupt as interrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return status_of(interrupt)
    show(rows, options.folder, shlex.join(["python", "train.py", "compare", *arguments]))
    return int(bool(options.axes) and any(row.failures for row in rows))


def show(rows: list[Row], folder: Path | None, command: str) -> None:
    """Print the tables and write them to files.

    Args:
        rows: Rows of the comparison.
        folder: Folder for ``table.md``, ``table.csv`` and ``report.html``; ``None`` writes nothing.
        command: Command that reproduces the files.
    """
    console = Console()
    tables = make_tables(rows)
    for table in tables:
        console.print(for_terminal(table).rich(console.width))
    if folder is None:
        return
    write_text(folder / "table.md", as_markdown(tables, command))
    write_text(folder / "table.csv", as_csv(rows))
    write_text(folder / REPORT, comparison_page(rows, command))
    console.print(f"everything is in {folder}", highlight=False, soft_wrap=True)


def _rows_of_grid(options: Namespace) -> list[Row]:
    grid = Grid(options.axes, options.seeds, options.settings)
    planned = plan_grid(grid, options.folder)
    # Seed by seed: a comparison that is stopped early has every row once, and not some rows with all seeds.
    failed = run_missing(sorted((run for row in planned for run in row), key=lambda run: run.seed), options.jobs)
    labels = [labels for labels, _ in grid.rows()]
    return [Row(each, [run_of(run, failed) for run in row]) for each, row in zip(labels, planned, strict=True)]


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(prog="train.py compare", description=DESCRIPTION, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the settings below")
    parser.add_argument("runs", nargs="*", type=str, metavar="RUN_DIR", help="folders to compare instead")
    parser.add_class_arguments(Grid)
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
