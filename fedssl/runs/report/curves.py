"""Figures over the rounds of one run, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.runs.report.record import Curve, RunRecord
from fedssl.runs.report.theme import MUTED, RULE, SERIES, legend_above, new_axes, themed

NUMBERED_STAGES = 12
SINGLE_BARS = 100
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
def lines(
    curves: Sequence[Line],
    unit: str,
    label: str,
    borders: Sequence[int] = (),
    levels: Sequence[tuple[str, float]] = (),
    from_zero: bool = True,
) -> Figure:
    """Draw lines over rounds; colours and dashes tell them apart.

    Args:
        curves: Lines to draw; more than about eight cannot be told apart.
        unit: Unit of the horizontal axis.
        label: Label of the vertical axis, with its unit.
        borders: Last round of every stage.
        levels: Names and heights of horizontal lines to compare with.
        from_zero: Start the vertical axis at 0.
    """
    figure, axes = new_axes()
    for index, line in enumerate(curves):
        axes.plot(
            *line.curve,
            color=SERIES[index % len(SERIES)],
            linestyle=DASHES[index % len(DASHES)],
            drawstyle="steps-mid" if line.steps else "default",
            marker="o" if len(line.curve[0]) < 2 else None,
            label=line.label or None,
        )
    for name, value in levels:
        axes.axhline(value, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2, label=name)
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
    bottom = [0.0] * len(rounds)
    series = [("trained", SERIES[0], trained)]
    series += [(name, SERIES[1 + at], record.curve(key)[1]) for at, (key, name) in enumerate(ABSENT.items())]
    for name, color, values in series:
        if any(values):
            top = [low + value for low, value in zip(bottom, values, strict=True)]
            if len(rounds) > SINGLE_BARS:
                axes.fill_between(rounds, bottom, top, step="mid", color=color, linewidth=0, label=name)
            else:
                axes.bar(rounds, values, bottom=bottom, width=0.9, color=color, label=name)
            bottom = top
    axes.set_ylabel("clients")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    finish_rounds(axes, record.unit, record.stages())
    legend_above(axes, ABOVE_STAGES)
    return figure


def mean_of_participants(record: RunRecord, *keys: str, scale: float) -> Curve:
    """Mean over a round's clients of summed metrics, divided by ``scale``; rounds without clients are left out.

    Empty if the run never logged one of the metrics: a private aggregation keeps exact figures to itself.
    """
    rounds, trained = record.curve("client/participants")
    failed = record.curve("client/failed")[1]
    if not all(record.curve(key)[0] for key in ("client/participants", "client/failed", *keys)):
        return [], []
    clients = [sum(counts) for counts in zip(trained, failed, strict=True)]
    totals = [sum(values) for values in zip(*(record.curve(key)[1] for key in keys), strict=True)]
    known = [row for row in zip(rounds, totals, clients, strict=True) if row[2]]
    return [at for at, _, _ in known], [total / number / scale for _, total, number in known]


def against(x: Curve, y: Curve) -> Curve:
    """Join two curves by round: the values of ``x`` replace the rounds of ``y``, where both have one."""
    known = dict(zip(*x, strict=True))
    both = [(known[at], value) for at, value in zip(*y, strict=True) if at in known]
    return [at for at, _ in both], [value for _, value in both]


def so_far(curve: Curve) -> Curve:
    """Running sum of a curve."""
    return curve[0], list(accumulate(curve[1]))


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
