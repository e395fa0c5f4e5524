"""Figures of the clients: their data and their work."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.runs.report.record import ClientDetails
from fedssl.runs.report.theme import SERIES, heat_map, new_axes, themed

MOST_CLIENTS = 200
"""Largest number of clients that can be told apart in a figure of this width."""
MOST_BINS = 40


def distribution(clients: ClientDetails) -> Figure:
    """Draw the images of each class that each client holds; of more than ``MOST_CLIENTS``, an evenly spaced part."""
    shown = shown_clients(len(clients.images))
    names, classes = shown.astype(str).tolist(), clients.classes.tolist()
    return heat_map(clients.images[shown], names, classes, ("client", "class"))


def shown_clients(number: int) -> np.ndarray:
    """Ids of the clients that are shown one by one."""
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
