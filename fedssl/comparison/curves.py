"""Curves of a comparison: accuracy over the rounds and against cost, and similarity of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from matplotlib.figure import Figure

from fedssl.comparison.rows import Row
from fedssl.runs.report.figures import DASHES, finish_rounds
from fedssl.runs.report.record import Curve, RunRecord
from fedssl.runs.report.theme import MUTED, SERIES, legend_above, new_axes, themed
from fedssl.runs.results import Measure, mean_and_deviation
from linear_eval import EvaluationDetails
from linear_eval.features import linear_cka

ACCURACY = "eval/knn_top1"
MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation of a metric over seeds, by round.

    Args:
        rounds: Rounds in which every run measured the metric.
        mean: Mean over the runs.
        deviation: Standard deviation over the runs; 0 for a single run.
    """

    rounds: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def records(row: Row) -> list[RunRecord]:
    """Read the finished runs of a row, with metrics and details."""
    return [RunRecord.read(run.folder) for run in row.runs if run.results]


def band(curves: Sequence[Curve]) -> Band:
    """Return mean and standard deviation in the rounds where all curves have a value.

    Args:
        curves: One curve a seed, at least one.
    """
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    rounds = sorted(set.intersection(*map(set, values)))
    found = np.array([[each[at] for at in rounds] for each in values])
    deviation = found.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(len(rounds))
    return Band(np.array(rounds), found.mean(axis=0), deviation)


def layer_similarity(first: Row, second: Row) -> tuple[np.ndarray, list[str], list[str]] | None:
    """Return the CKA of the layers of two rows' encoders on the same test images, mean over the seeds that both have.

    Returns:
        CKA (L, M) and the names of both encoders' layers; ``None`` if the runs did not keep their layers' outputs.
    """
    own, others = _details(first), _details(second)
    pairs = [(own[seed], others[seed]) for seed in own if seed in others]
    # CKA compares responses to the same images; runs that kept another number of them cannot be compared.
    pairs = [(a, b) for a, b in pairs if len(a.layer_outputs[0]) == len(b.layer_outputs[0]) > 0]
    if not pairs:
        return None
    outputs = [[list(map(torch.from_numpy, each.layer_outputs)) for each in pair] for pair in pairs]
    values = torch.stack([linear_cka(*both) for both in outputs]).mean(dim=0)
    return values.numpy(), *([name.removeprefix("block ") for name in each.layers.tolist()] for each in pairs[0])


def _details(row: Row) -> dict[int, EvaluationDetails]:
    found = {int(record.results["seed"]): record.evaluation for record in records(row)}
    return {seed: details for seed, details in found.items() if details is not None and len(details.layers)}


@themed
def accuracy_over_rounds(bands: Mapping[str, Band], unit: str) -> Figure:
    """Draw the mean of each row as a line, with one standard deviation to both sides as a band.

    Args:
        bands: Bands by the name of their row.
        unit: Unit of the horizontal axis.
    """
    figure, axes = new_axes()
    for (name, band), color, dashes in zip(bands.items(), cycle(SERIES), cycle(DASHES), strict=False):
        axes.plot(band.rounds, band.mean, color=color, linestyle=dashes, label=name)
        low, high = band.mean - band.deviation, band.mean + band.deviation
        axes.fill_between(band.rounds, low, high, color=color, alpha=0.18, linewidth=0)
    axes.set_ylabel("kNN top-1 %")
    finish_rounds(axes, unit, ())
    legend_above(axes, 3)
    return figure


@themed
def accuracy_against_cost(accuracy: Measure, cost: Measure, groups: Mapping[str, Mapping[str, Row]]) -> Figure:
    """Draw one point a row, with one standard deviation in both directions.

    Args:
        accuracy: Measure of the vertical axis.
        cost: Measure of the horizontal axis.
        groups: Rows by the group that their marker shows and the name that their colour shows.
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
    """Draw a bar for each cost of each row, in percent of end-to-end training.

    Args:
        shares: Fractions by the name of the row, one a measure; 1 is as much as end-to-end training.
        measures: Measures in the order of the fractions.
    """
    figure, axes = new_axes(height=1.2 + 0.22 * len(measures) * len(shares))
    height = 0.8 / len(shares)
    places = np.arange(len(measures))
    for index, (name, values) in enumerate(shares.items()):
        at = places + (index - (len(shares) - 1) / 2) * height
        percents = [100 * value for value in values]
        bars = axes.barh(at, percents, height=0.86 * height, color=SERIES[index % len(SERIES)], label=name)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.axvline(100, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.2)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(places, [measure.title.rpartition(" ")[0] or measure.title for measure in measures])
    axes.invert_yaxis()
    axes.set_xlabel("% of end-to-end training")
    axes.margins(x=0.08)
    legend_above(axes, 3)
    return figure
