"""The papers' comparisons shrunk to one core (``configs/paper/compare_*.yaml``), each row beside the printed figure."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import write_page
from fedssl.comparison.command import run_grid
from fedssl.comparison.grid import Grid
from fedssl.comparison.rows import Row
from fedssl.comparison.table import as_markdown, make_tables

CONFIGS = Path(__file__).parents[1] / "configs" / "paper"
PRINTED = "printed fine-tuned %"
Figures = Mapping[str, str | Mapping[str, str]]
COMPARISONS: dict[str, Figures] = {
    "resnet": {"end-to-end": "85.20", "layer-wise": "85.64", "progressive": "85.57"},
    "participation": {"end-to-end": "71.85", "layer-wise": "84.33", "progressive": "85.18"},
    "cifar10": {
        "end-to-end": {"MoCoV3": "83.95", "SimCLR": "84.38", "BYOL": "83.59"},
        "layer-wise (v4)": {"MoCoV3": "83.43", "SimCLR": "84.27", "BYOL": "84.20"},
        "progressive": {"MoCoV3": "86.53", "SimCLR": "86.38", "BYOL": "87.51"},
    },
    "bloodmnist": {
        "end-to-end": {"0.5": "92.14", "5": "90.82", "50": "91.09"},
        "layer-wise": {"0.5": "92.93", "5": "93.20", "50": "92.77"},
        "progressive": {"0.5": "93.59", "5": "93.62", "50": "94.49"},
    },
    "ablations": {"end-to-end": "85.20", "layer-wise, 1 block a stage": "85.64"},
}
"""Fine-tuned accuracies of LW-FedSSL, arXiv 2401.11647v4, by the labels of a row: tables 2, 3, 4 and 6 to 9.

Those of partial participation are of 25 of 100 IID clients.
"""


def add_commands(commands: Any) -> None:
    """Adds ``paper``."""
    parser = commands.add_parser("paper", help=(__doc__ or "").strip())
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--work", default="runs", help="parent of the comparisons' folders")
    parser.add_argument("--comparisons", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing and writes the tables of each comparison."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in arguments.comparisons:
        grid = Grid(**yaml.safe_load((CONFIGS / f"compare_{name}.yaml").read_text()))
        here = replace(grid, settings=f"{grid.settings} --data.root={shlex.quote(arguments.root)}")
        rows = run_grid(here, Path(arguments.work) / f"compare_{name}", arguments.jobs)
        rows = [replace(row, labels=row.labels | {PRINTED: printed(row, COMPARISONS[name])}) for row in rows]
        page = as_markdown(make_tables(rows), f"python train.py compare -c paper/compare_{name}.yaml")
        write_page(results, f"paper_{name}", page, {row.name: row.results for row in rows})


def printed(row: Row, figures: Figures) -> str:
    """Return the figure with a row's labels, one after the other; empty if the paper has none."""
    found: Any = figures
    for label in row.labels.values():
        found = found.get(label, "") if isinstance(found, Mapping) else found
    return found if isinstance(found, str) else ""
