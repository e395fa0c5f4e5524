"""Figures of a comparison: accuracy over rounds, accuracy against cost, and costs as shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from fedssl.comparison.curves import Band
from fedssl.comparison.measures import Measure, mean_and_deviation
from fedssl.comparison.rows import Row
from fedssl.report.curves import DASHES, finish_rounds
from fedssl.report.theme import MUTED, SERIES, legend_above, new_axes, themed

MARKERS = "osD^vP*X"


@themed
def accuracy_over_rounds(bands: Mapping[str, Band], unit: str) -> Figure:
    """Mean of each row as a line, one standard deviation to both sides as a band.

    Args:
        bands: By name.
        unit: What the horizontal axis counts.
    """
    figure, axes = new_axes()
    for index, (name, band) in enumerate(bands.items()):
        color, mean, deviation = SERIES[index % len(SERIES)], np.array(band.mean), np.array(band.deviation)
        axes.plot(band.rounds, mean, color=color, linestyle=DASHES[index % len(DASHES)], label=name)
        axes.fill_between(band.rounds, mean - deviation, mean + deviation, color=color, alpha=0.18, linewidth=0)
    axes.set_ylabel("kNN top-1 %")
    finish_rounds(axes, unit, ())
    legend_above(axes, 3)
    return figure


@themed
def accuracy_against_cost(accuracy: Measure, cost: Measure, groups: Mapping[str, Mapping[str, Row]]) -> Figure:
    """One point a row, with one standard deviation in both directions.

    Args:
        accuracy: Of the vertical axis.
        cost: Of the horizontal axis.
        groups: Rows by what their marker says and by what their colour says.
    """
    figure, axes = new_axes(height=3.3)
    axes.grid(visible=True, axis="both")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    colors = dict(zip(names, cycle(SERIES), strict=False))
    for (title, group), marker in zip(groups.items(), cycle(MARKERS), strict=False):
        for name, row in group.items():
            x, x_error = mean_and_deviation(cost.values(row.results))
            y, y_error = mean_and_deviation(accuracy.values(row.results))
            axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt=marker, color=colors[name], elinewidth=1, markersize=6)
        if len(groups) > 1:
            axes.plot([], [], marker, color=MUTED, label=title)
    for name, color in colors.items():
        axes.plot([], [], "-", color=color, linewidth=5, label=name)
    axes.set_xlim(left=0)
    axes.set_xlabel(cost.title)
    axes.set_ylabel(accuracy.title)
    legend_above(axes, 3)
    return figure


@themed
def cost_shares(shares: Mapping[str, Sequence[float]], measures: Sequence[Measure]) -> Figure:
    """Bars of each cost of each row, in percent of end-to-end training.

    Args:
        shares: By name, a number a measure; 1 is as much as end-to-end training.
        measures: In the order of the numbers.
    """
    figure, axes = new_axes(height=1.2 + 0.22 * len(measures) * len(shares))
    height = 0.8 / len(shares)
    places = np.arange(len(measures))
    for index, (name, values) in enumerate(shares.items()):
        at = places + (index - (len(shares) - 1) / 2) * height
        percents = [100 * value for value in values]
        axes.barh(at, percents, height=0.86 * height, color=SERIES[index % len(SERIES)], label=name)
        for y, value in zip(at, percents, strict=True):
            axes.annotate(
                f"{value:.0f}", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.axvline(100, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(places, [measure.title.rpartition(" ")[0] or measure.title for measure in measures])
    axes.invert_yaxis()
    axes.set_xlabel("% of end-to-end training")
    axes.margins(x=0.08)
    legend_above(axes, 3)
    return figure
