"""Figures of a run's rounds and of its clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.runs.report.record import ClientDetails, Curve, RunRecord
from fedssl.runs.report.theme import INK, MUTED, RULE, SERIES, heat_map, legend_above, new_axes, new_figure, themed

NUMBERED_STAGES = 12
ABOVE_STAGES = 2.0
DASHES = ("-", "--", "-.", ":")
ABSENT = {
    "client/dropped": "dropped",
    "client/failed": "failed",
    "client/late": "late",
    "client/unavailable": "out of reach",
    "client/ineligible": "too little memory",
}
"""List the reasons why clients gave no result, by metric."""

MOST_CLIENTS = 200
"""Largest number of clients that can be told apart in a figure of this width."""
MOST_BINS = 40


@dataclass(frozen=True)
class Line:
    """Line of a figure.

    Args:
        curve: Rounds and values.
        label: Entry in the legend; empty for none.
        steps: Draw steps, for a value that jumps between rounds instead of growing.
    """

    curve: Curve
    label: str = ""
    steps: bool = False


@themed
def lines(curves: Sequence[Line], unit: str, label: str, borders: Sequence[int] = (), from_zero: bool = True) -> Figure:
    """Draw lines over rounds; colours and dashes tell them apart.

    Args:
        curves: Lines to draw; more than about eight cannot be told apart.
        unit: Unit of the horizontal axis.
        label: Label of the vertical axis, with its unit.
        borders: Last round of every stage.
        from_zero: Start the vertical axis at 0.
    """
    figure, axes = new_axes()
    draw_lines(axes, curves, label, from_zero)
    finish_rounds(axes, unit, borders)
    legend_above(axes, ABOVE_STAGES)
    return figure


def draw_lines(axes: Axes, curves: Sequence[Line], label: str, from_zero: bool = True) -> None:
    """Draw lines into a panel; colours and dashes tell them apart."""
    for line, color, dashes in zip(curves, cycle(SERIES), cycle(DASHES), strict=False):
        jumps: Any = "steps-mid" if line.steps else "default"
        marker = "o" if len(line.curve[0]) < 2 else None
        axes.plot(*line.curve, color=color, ls=dashes, drawstyle=jumps, marker=marker, label=line.label or None)
    axes.set_ylabel(label)
    if from_zero:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])


@themed
def participation(record: RunRecord) -> Figure:
    """Draw the clients of each round: those whose result counted, and the others by reason."""
    figure, axes = new_axes()
    rounds, trained = record.curve("client/participants")
    edges, bottom = np.append(rounds, rounds[-1:] + 1) - 0.5, np.zeros_like(trained)
    series = {"trained": trained} | {name: record.curve(key)[1] for key, name in ABSENT.items()}
    for (name, values), color in zip(series.items(), SERIES, strict=False):
        if values.any():
            axes.stairs(bottom + values, edges, baseline=bottom, fill=True, color=color, label=name)
            bottom = bottom + values
    axes.set_ylabel("clients")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    finish_rounds(axes, record.unit, record.stages())
    legend_above(axes, ABOVE_STAGES)
    return figure


def mean_of_participants(record: RunRecord, *keys: str, scale: float) -> Curve:
    """Average summed metrics, divided by ``scale``; rounds without clients are left out.

    Empty if the run never logged one of the metrics: a private aggregation keeps exact figures to itself.
    """
    rounds, *counts = record.curve("client/participants")
    counts.append(record.curve("client/failed")[1])
    totals = [record.curve(key)[1] for key in keys]
    if not all(len(values) for values in (*counts, *totals)):
        return np.empty(0), np.empty(0)
    clients = np.sum(counts, axis=0)
    known = clients > 0
    return rounds[known], np.sum(totals, axis=0)[known] / clients[known] / scale


def against(x: Curve, y: Curve) -> Curve:
    """Join two curves by round: the values of ``x`` replace the rounds of ``y``, where both have one."""
    _, in_x, in_y = np.intersect1d(x[0], y[0], return_indices=True)
    return x[1][in_x], y[1][in_y]


def so_far(curve: Curve) -> Curve:
    """Add up a curve."""
    return curve[0], curve[1].cumsum()


def finish_rounds(axes: Axes, unit: str, borders: Sequence[int]) -> None:
    """Label the horizontal axis and mark where stages end, with their numbers above if there is room."""
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    if borders:
        axes.set_xlim(0.5, borders[-1] + 0.5)
    for end in borders[:-1]:
        axes.axvline(end + 0.5, color=RULE, linewidth=0.8, zorder=0.5)
    if 1 < len(borders) <= NUMBERED_STAGES:
        _number(axes, "stage", 0.0, "axes fraction", "right")
        for number, (start, end) in enumerate(zip([0, *borders], borders, strict=False), 1):
            _number(axes, str(number), (start + end + 1) / 2, "data", "center")


def _number(axes: Axes, text: str, at: float, coordinates: Any, alignment: Any) -> None:
    where: Any = (coordinates, "axes fraction")
    style: dict[str, Any] = {"ha": alignment, "va": "bottom", "fontsize": 8, "color": MUTED}
    axes.annotate(text, (at, 1.0), xycoords=where, xytext=(0, 6), textcoords="offset points", **style)


def distribution(clients: ClientDetails) -> Figure:
    """Draw the images of each class that each client holds; of more than ``MOST_CLIENTS``, an evenly spaced part."""
    shown = shown_clients(len(clients.images))
    names, classes = clients.names[shown].tolist(), clients.classes.tolist()
    return heat_map(clients.images[shown], names, classes, ("client", "class"))


def shown_clients(number: int) -> np.ndarray:
    """Return the ids of the clients that are shown one by one."""
    return np.unique(np.linspace(0, number - 1, min(number, MOST_CLIENTS)).round().astype(int))


@themed
def each_client(values: np.ndarray, label: str) -> Figure:
    """Draw one bar a client; for more than ``MOST_CLIENTS``, a histogram.

    Args:
        values: One value a client, (clients,).
        label: Name of the values, with a unit.
    """
    figure, axes = new_axes(height=2.6)
    if len(values) > MOST_CLIENTS:
        whole = (values == values.round()).all()  # a bin for each number, where there are few
        bins = min(MOST_BINS, int(np.ptp(values)) + 1) if whole else MOST_BINS
        axes.hist(values, bins=bins, color=SERIES[0], rwidth=0.9)
        axes.set_xlabel(label)
        axes.set_ylabel("clients")
        return figure
    axes.bar(np.arange(len(values)), values, width=0.8, color=SERIES[0])
    axes.set_xlabel("client")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    return figure


@themed
def pace(rows: Sequence[dict[str, str]]) -> Figure:
    """Draw each block's perturbation, its mean and the mean's slope over the rounds, and why the block was frozen.

    Args:
        rows: Sequence[dict[str, str]] of ``metrics.csv``.
    """
    rows = [row for row in rows if row.get("stage")]
    figure = new_figure(8, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_stages(above, rows, "pace/perturbation", MUTED, "perturbation")
    _draw_stages(above, rows, "pace/smoothed", SERIES[0], "smoothed")
    _draw_stages(below, rows, "pace/slope", SERIES[1], "slope relative to the mean")
    _mark_stages([above, below], rows)
    above.set_ylabel("block perturbation")
    above.set_ylim(0, 1.05)
    below.axhline(0, color=MUTED, linewidth=0.8)
    below.set_ylabel("slope")
    below.set_xlabel("round")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _draw_stages(axes: Axes, rows: Sequence[dict[str, str]], key: str, color: str, label: str) -> None:
    """Draw one curve, interrupted where a stage begins."""
    for position, stage in enumerate(sorted({float(row["stage"]) for row in rows})):
        known = [row for row in rows if float(row["stage"]) == stage and row.get(key)]
        x, y = [float(row["round"]) + 1 for row in known], [float(row[key]) for row in known]
        axes.plot(x, y, color=color, marker=".", markersize=4, label=label if position == 0 else None)


def _mark_stages(panels: list[Axes], rows: Sequence[dict[str, str]]) -> None:
    """Draw a line at the end of each stage: solid if its block had converged, dotted if its rounds ran out."""
    ends = [row for row, following in pairwise([*rows, {}]) if row["stage"] != following.get("stage")]
    for row in ends:
        frozen = float(row.get("pace/freeze") or 0) == 1
        end = float(row["round"]) + 1.5
        for axes in panels:
            axes.axvline(end, color=SERIES[2] if frozen else INK, linestyle="-" if frozen else ":", linewidth=1)
        note = f"stage {int(float(row['stage'])) + 1} {'converged' if frozen else 'at its last round'}"
        panels[0].annotate(note, (end, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right")
