"""Figures of what each client held and did."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.runs.report.record import ClientDetails
from fedssl.runs.report.theme import SERIES, heat_map, new_axes, themed

MOST_CLIENTS = 200
"""Of more, single ones cannot be made out in a figure of this width."""


def distribution(clients: ClientDetails) -> Figure:
    """Images of each class that each client holds; of more than :data:`MOST_CLIENTS` an evenly spaced part is shown."""
    shown = shown_clients(len(clients.images))
    return heat_map(
        clients.images[shown],
        rows=[str(client) for client in shown],
        columns=clients.classes.tolist(),
        row_label="client",
        column_label="class",
    )


def shown_clients(number: int) -> np.ndarray:
    """Numbers of the clients that are shown one by one."""
    return np.unique(np.linspace(0, number - 1, min(number, MOST_CLIENTS)).round().astype(int))


@themed
def each_client(values: np.ndarray, label: str) -> Figure:
    """One bar a client; of more than :data:`MOST_CLIENTS` how many have about the same value.

    Args:
        values: (clients,).
        label: What they are, with a unit.
    """
    figure, axes = new_axes(height=2.6)
    if len(values) > MOST_CLIENTS:
        axes.hist(values, bins=_bins(values).tolist(), color=SERIES[0], rwidth=0.9)
        axes.set_xlabel(label)
        axes.set_ylabel("clients")
        return figure
    axes.bar(np.arange(len(values)), values, width=0.8, color=SERIES[0])
    axes.set_xlabel("client")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    return figure


def _bins(values: np.ndarray) -> np.ndarray:
    """Borders of at most 40 bins; around whole numbers if all values are whole."""
    low, high = float(values.min()), float(values.max())
    if (values == values.round()).all():
        return np.arange(low, high + 1 + (step := max(1, round((high - low) / 40))), step) - 0.5
    return np.linspace(low, high, 41)
