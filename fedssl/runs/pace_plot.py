"""Pace plot: the perturbation of each block, and the reason why it was frozen when it was."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedssl.runs.report.theme import INK, MUTED, SERIES, as_png, new_figure, themed
from fedssl.runs.run_folder import read_metrics
from fedssl.utils.files import write_atomically

Rows = list[dict[str, str]]


def plot_pace(metrics: Path, path: Path) -> None:
    """Draw perturbation, its mean and the slope of the mean over the rounds, with the decisions to freeze.

    Args:
        metrics: ``metrics.csv`` of the run.
        path: PNG file to write.
    """
    picture = as_png(_figure([row for row in read_metrics(metrics) if row.get("stage")]))
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))


@themed
def _figure(rows: Rows) -> Figure:
    figure = new_figure(8, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw(above, rows, "pace/perturbation", MUTED, "perturbation")
    _draw(above, rows, "pace/smoothed", SERIES[0], "smoothed")
    _draw(below, rows, "pace/slope", SERIES[1], "slope relative to the mean")
    _mark_stages([above, below], rows)
    above.set_ylabel("block perturbation")
    above.set_ylim(0, 1.05)
    below.axhline(0, color=MUTED, linewidth=0.8)
    below.set_ylabel("slope")
    below.set_xlabel("round")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _draw(axes: Axes, rows: Rows, key: str, color: str, label: str) -> None:
    """Draw one curve, interrupted where a stage begins."""
    for position, stage in enumerate(sorted({float(row["stage"]) for row in rows})):
        known = [row for row in rows if float(row["stage"]) == stage and row.get(key)]
        x, y = [float(row["round"]) + 1 for row in known], [float(row[key]) for row in known]
        axes.plot(x, y, color=color, marker=".", markersize=4, label=label if position == 0 else None)


def _mark_stages(panels: list[Axes], rows: Rows) -> None:
    """Draw a line at the end of each stage: solid if its block had converged, dotted if its rounds ran out."""
    ends = [row for row, following in pairwise([*rows, {}]) if row["stage"] != following.get("stage")]
    for row in ends:
        frozen = float(row.get("pace/freeze") or 0) == 1
        end = float(row["round"]) + 1.5
        for axes in panels:
            axes.axvline(end, color=SERIES[2] if frozen else INK, linestyle="-" if frozen else ":", linewidth=1)
        note = f"stage {int(float(row['stage'])) + 1} {'converged' if frozen else 'at its last round'}"
        panels[0].annotate(note, (end, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right")
