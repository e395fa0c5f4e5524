"""Pace plot: the perturbation of each block, and the reason why it was frozen when it was."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = {"pace/perturbation": ("#999999", "perturbation"), "pace/smoothed": ("#0072B2", "smoothed")}
SLOPE = "pace/slope"
FREEZE = "pace/freeze"
Rows = list[dict[str, str]]


def plot_pace(metrics: Path, path: Path) -> None:
    """Draw perturbation, its mean and the slope of the mean over the rounds, with the decisions to freeze.

    Args:
        metrics: ``metrics.csv`` of the run.
        path: PNG or SVG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("stage")]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for key, (color, label) in CURVES.items():
        _draw(above, rows, key, color, label)
    _draw(below, rows, SLOPE, "#D55E00", "slope relative to the mean")
    above.set_ylabel("block perturbation")
    below.set_ylabel("slope")
    _mark_stages(above, rows, named=True)
    _mark_stages(below, rows, named=False)
    above.set_ylim(0, 1.05)
    below.axhline(0, color="#999999", linewidth=0.8)
    below.set_xlabel("round")
    handles = [entry for axes in (above, below) for entry in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(axes: Axes, rows: Rows, key: str, color: str, label: str) -> None:
    """Draw one curve, interrupted where a stage begins."""
    for position, stage in enumerate(sorted({float(row["stage"]) for row in rows})):
        known = [row for row in rows if float(row["stage"]) == stage and row.get(key)]
        x, y = [float(row["round"]) + 1 for row in known], [float(row[key]) for row in known]
        axes.plot(x, y, color=color, linewidth=1.6, marker=".", markersize=4, label=label if position == 0 else None)


def _mark_stages(axes: Axes, rows: Rows, named: bool) -> None:
    """Draw a line at the end of each stage: solid if its block had converged, dotted if its rounds ran out."""
    ends = [row for row, following in zip(rows, [*rows[1:], None], strict=True) if _ends(row, following)]
    for row in ends:
        frozen = float(row.get(FREEZE) or 0) == 1
        end = float(row["round"]) + 1.5
        axes.axvline(end, color="#009E73" if frozen else "#000000", linestyle="-" if frozen else ":", linewidth=1)
        if not named:
            continue
        note = f"stage {int(float(row['stage'])) + 1} {'converged' if frozen else 'at its last round'}"
        axes.annotate(note, (end, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right")


def _ends(row: dict[str, str], following: dict[str, str] | None) -> bool:
    return following is None or following["stage"] != row["stage"]
