"""Figures over the rounds of one run, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.runs.report.record import Curve, RunRecord
from fedssl.runs.report.theme import MUTED, RULE, SERIES, legend_above, new_axes, themed

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
"""Reasons why clients gave no result, by metric."""


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
    for line, color, dashes in zip(curves, cycle(SERIES), cycle(DASHES), strict=False):
        jumps: Any = "steps-mid" if line.steps else "default"
        marker = "o" if len(line.curve[0]) < 2 else None
        axes.plot(*line.curve, color=color, ls=dashes, drawstyle=jumps, marker=marker, label=line.label or None)
    axes.set_ylabel(label)
    if from_zero:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    finish_rounds(axes, unit, borders)
    legend_above(axes, ABOVE_STAGES)
    return figure


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
    """Mean over a round's clients of summed metrics, divided by ``scale``; rounds without clients are left out.

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
    """Running sum of a curve."""
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
