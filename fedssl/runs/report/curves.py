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
"""Why clients gave nothing, by metric."""


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Args:
        curve: Rounds and values.
        label: In the legend, or nothing.
        steps: Whether the value jumps between rounds instead of growing.
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
    """Draws lines over rounds, which colour and dashes tell apart.

    Args:
        curves: At most as many as are told apart, about eight.
        unit: What the horizontal axis counts.
        label: Of the vertical axis, with its unit.
        borders: The last round of every stage.
        levels: Horizontal lines to compare with, by name.
        from_zero: Whether the vertical axis starts at 0.
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
    """Clients of each round: whose result counted, and why others gave nothing."""
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
    """Sum of metrics of all clients of a round, divided by their number and by ``scale``; empty rounds are left out.

    Nothing if the run logged one of the metrics in no round: a private aggregation keeps exact figures to itself.
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
    """The values of two curves in the rounds that both know, those of ``x`` in place of the rounds."""
    known = dict(zip(*x, strict=True))
    both = [(known[at], value) for at, value in zip(*y, strict=True) if at in known]
    return [at for at, _ in both], [value for _, value in both]


def so_far(curve: Curve) -> Curve:
    """Running sum."""
    return curve[0], list(accumulate(curve[1]))


def finish_rounds(axes: Axes, unit: str, borders: Sequence[int]) -> None:
    """Labels the horizontal axis and marks where stages end, with their numbers above if there is room."""
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
