"""Figures of what each client held and did."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedssl.report.details_file import ClientDetails
from fedssl.report.heat_map import heat_map
from fedssl.report.theme import SERIES, new_axes, themed


def distribution(clients: ClientDetails) -> Figure:
    """Images of each class that each client holds."""
    return heat_map(
        clients.images,
        rows=[str(client) for client in range(len(clients.images))],
        columns=clients.classes.tolist(),
        row_label="client",
        column_label="class",
    )


@themed
def bars(values: np.ndarray, label: str) -> Figure:
    """One bar a client.

    Args:
        values: (clients,).
        label: What they are, with a unit.
    """
    figure, axes = new_axes(height=2.6)
    axes.bar(np.arange(len(values)), values, width=0.8, color=SERIES[0])
    axes.set_xlabel("client")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    return figure
