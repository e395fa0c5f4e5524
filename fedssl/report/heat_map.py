"""A table of numbers as colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedssl.report.theme import INK, new_axes, themed, tint

PRINTED_CELLS = 13
NAMED_CELLS = 24
LONG_NAME = 4


@themed
def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    square: bool = False,
    highest: float | None = None,
    digits: int = 0,
) -> Figure:
    """Draws a matrix, light to dark from 0; numbers are printed into cells, and names beside them, if there is room.

    Args:
        values: (R, C), at least 0.
        rows: Names of the rows.
        columns: Names of the columns.
        row_label: What the rows are.
        column_label: What the columns are.
        square: Whether cells are as high as they are wide.
        highest: The value of the darkest colour; ``None``: the largest value.
        digits: After the decimal point.
    """
    height = 4.2 if square else min(4.2, max(2.0, 0.9 + 0.26 * len(rows)))
    figure, axes = new_axes(height=height)
    axes.grid(visible=False)
    top = highest or max(float(values.max(initial=0)), 1e-12)
    axes.imshow(tint(values / top), interpolation="none", aspect="equal" if square else "auto")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(*_names(columns), **(slanted if max(map(len, columns), default=0) > LONG_NAME else {}))
    axes.set_yticks(*_names(rows))
    axes.set_xlabel(column_label)
    axes.set_ylabel(row_label)
    if max(values.shape) <= PRINTED_CELLS:
        for (row, column), value in np.ndenumerate(values):
            color = INK if value / top < 0.55 else "#ffffff"
            text = f"{value:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figure


def _names(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions and names; if they are too many to read, of one in so many."""
    every = -(-len(names) // NAMED_CELLS)
    return list(range(0, len(names), every)), list(names)[::every]
