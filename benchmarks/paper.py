"""The papers' comparisons shrunk to one core (``configs/paper/compare_*.yaml``), each result beside the printed one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import write_record
from benchmarks.runs import finish
from fedssl.comparison.grid import Grid, plan_grid
from fedssl.comparison.rows import Row
from fedssl.comparison.runner import run_of
from fedssl.comparison.table import cell
from fedssl.runs.results import COSTS, Measure

CONFIGS = Path(__file__).parents[1] / "configs" / "paper"
ACCURACIES = (
    Measure("kNN %", "knn_top1"),
    Measure("linear %", "linear_top1"),
    Measure("fine-tuned %", "finetuned_top1"),
)
PER_CLASS = (
    Measure("kNN per class %", "knn_mean_per_class"),
    Measure("linear per class %", "linear_mean_per_class"),
    Measure("fine-tuned per class %", "finetuned_mean_per_class"),
)
PRINTED = "printed fine-tuned %"
SCHEMES = {
    "end-to-end": {"MoCoV3": "83.95", "SimCLR": "84.38", "BYOL": "83.59"},
    "layer-wise (v4)": {"MoCoV3": "83.43", "SimCLR": "84.27", "BYOL": "84.20"},
    "progressive": {"MoCoV3": "86.53", "SimCLR": "86.38", "BYOL": "87.51"},
}
PARTICIPATION = {
    "end-to-end": {"25 of 100": "71.85", "100, half drop out": "73.08"},
    "layer-wise": {"25 of 100": "84.33", "100, half drop out": "83.93"},
    "progressive": {"25 of 100": "85.18", "100, half drop out": "84.78"},
}
BLOODMNIST = {
    "end-to-end": {"0.5": "92.14", "5": "90.82", "50": "91.09"},
    "layer-wise": {"0.5": "92.93", "5": "93.20", "50": "92.77"},
    "progressive": {"0.5": "93.59", "5": "93.62", "50": "94.49"},
}
ABLATIONS = {
    "end-to-end": "83.95",
    "layer-wise, 1 block a stage": "83.43",
    "2 blocks a stage": "84.85",
    "3 blocks a stage": "85.32",
    "3 blocks present": "84.10",
    "proximal term": "84.46",
    "alignment": "84.31",
}
"""Fine-tuned accuracies of LW-FedSSL, arXiv 2401.11647v4, by the labels of a row: tables 2, 3 and 6 to 9."""


@dataclass(frozen=True)
class Comparison:
    """One table.

    Args:
        title: Its heading.
        printed: Fine-tuned accuracies in the paper by the labels of a row.
        accuracies: What is shown.
    """

    title: str
    printed: Mapping[str, str | Mapping[str, str]]
    accuracies: Sequence[Measure] = ACCURACIES


COMPARISONS = {
    "cifar10": Comparison("Schemes and methods on CIFAR-10", SCHEMES),
    "participation": Comparison("Partial participation on CIFAR-10", PARTICIPATION),
    "bloodmnist": Comparison("Heterogeneity on BloodMNIST", BLOODMNIST, PER_CLASS),
    "ablations": Comparison("Variants of layer-wise training on CIFAR-10", ABLATIONS),
}


def add_commands(commands: Any) -> None:
    """Adds ``paper``."""
    parser = commands.add_parser("paper", help=(__doc__ or "").strip())
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--work", default="runs", help="parent of the comparisons' folders")
    parser.add_argument("--comparisons", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--finished", action="store_true", help="start nothing: tables of the runs that have ended")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing, if that is wanted, and writes a table for each comparison."""
    for name in arguments.comparisons:
        comparison = COMPARISONS[name]
        rows = read_rows(name, arguments)
        ended = [row for row in rows if row.results]
        if not ended:
            continue
        table = [line(row, rows, comparison) for row in ended]
        table.insert(0, random_init(ended[0], table[0], comparison.accuracies))
        runs = {row.name: row.results for row in ended}
        write_record(results, f"paper_{name}", comparison.title, table, runs, about(name, rows))


def read_rows(name: str, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a comparison; those that have not been run are without results."""
    grid = read_grid(name, arguments.root)
    planned = plan_grid(grid, Path(arguments.work) / f"compare_{name}")
    if not arguments.finished:
        finish([run for row in planned for run in row], arguments.jobs)
    labels = [labels for labels, _ in grid.rows()]
    return [Row(each, [run_of(run, {}) for run in row]) for each, row in zip(labels, planned, strict=True)]


def read_grid(name: str, root: str) -> Grid:
    """The runs, with the data sets in this folder."""
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f"compare_{name}.yaml").read_text())
    return Grid(found["axes"], found["seeds"], f"{found['settings']} --data.root={shlex.quote(root)}")


def about(name: str, rows: list[Row]) -> str:
    """Notes on the runs, and on the parts of the paper that were left out."""
    grid = read_grid(name, "DIR")
    commits = dict.fromkeys(row.facts["commit"] for row in rows if row.results)
    notes = (
        f"`configs/paper/compare_{name}.yaml` with `{grid.settings}`, seed {', '.join(map(str, grid.seeds))}, commit "
        f"of the runs {', '.join(commits)}. Last round's values; in brackets the share of end-to-end training. Printed "
        "figures are those of the paper, at full scale.\n"
    )
    absent = "; ".join(row.name for row in rows if not row.results)
    return notes + (f"\nNot run: {absent}.\n" if absent else "")


def line(row: Row, rows: list[Row], comparison: Comparison) -> dict[str, str]:
    """One line of the table."""
    cells = row.labels | {measure.title: measure.text(row.results) for measure in comparison.accuracies}
    printed: Any = comparison.printed
    for label in row.labels.values():
        printed = printed.get(label, {})
    cells[PRINTED] = printed or ""
    return cells | {measure.title: cell(measure, row, rows) for measure in COSTS}


def random_init(row: Row, like: dict[str, str], accuracies: Sequence[Measure]) -> dict[str, str]:
    """The line of the encoder before training, which is the same for all rows."""
    known = {measure.title: measure.text(row.results, "random_init_") for measure in accuracies}
    return dict.fromkeys(like, "") | {next(iter(like)): "random init"} | known
