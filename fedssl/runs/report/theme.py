"""Theme of figures, for a page with light or dark colours; heat maps, which several parts of a report draw."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fedssl.utils.files import write_atomically

INK, MUTED, RULE, GRID, PAPER = "#1b1f24", "#5b6470", "#b9c0c8", "#e4e7eb", "#fefefe"
SERIES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6250bd", "#8c5a3c", "#7c838c", "#8f9a1c",
)  # fmt: skip
"""Colours of series and classes: six of Okabe and Ito's, which colour-blind readers can tell apart, and four more."""

TINT = LinearSegmentedColormap.from_list("tint", [f"{SERIES[0]}00", SERIES[0]])
"""Colours of heat maps: transparent instead of white at 0, and for unknown values, to fit a light and a dark page."""

STYLE: dict[Any, Any] = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), RULE),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.titlecolor", "text.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    **dict.fromkeys(("axes.titlesize", "axes.labelsize", "font.size", "legend.fontsize"), 9.5),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.8),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.parse_math": False,  # the name of a class may be "$x$", which is no formula
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.composite_image": False,
    "svg.fonttype": "none",  # text stays text: it takes the page's font, can be searched and read aloud
    "svg.hashsalt": "fedssl",  # equal figures get equal ids, so that equal runs write equal pages
}
P = ParamSpec("P")


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws a figure: apply the report's style and settle the layout."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            figure = draw(*args, **kwargs)
            if layout := figure.get_layout_engine():
                layout.execute(figure)
            figure.set_layout_engine("none")  # or SVG and PNG would each solve the same layout again
            return figure

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(height: float = 2.9) -> tuple[Figure, Axes]:
    """Create a figure with one panel, as wide as a column of the page: 4.8 inches."""
    figure = new_figure(4.8, height)
    return figure, figure.subplots()


def legend_above(axes: Axes, lift: float = 0.4) -> None:
    """Add a legend above the panel, where it hides nothing; none for a single series.

    Args:
        axes: Panel of the figure.
        lift: Distance from the panel, in units of the font size.
    """
    if len(axes.get_legend_handles_labels()[0]) > 1:
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": lift}
        axes.legend(**above, ncols=3, handlelength=1.6, columnspacing=1.4, borderpad=0)


def as_svg(figure: Figure, label: str, name: str) -> str:
    """Convert a figure to an ``<svg>`` element that stands inside a page and refers to nothing outside it.

    Args:
        figure: Figure to convert.
        label: Description for readers who cannot see the figure.
        name: Name of the figure, unique in the page.
    """
    text = io.StringIO()
    # Figures share one name space of ids in a page: with the same salt, one would take another's clip paths.
    with rc_context(STYLE | {"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # Ids of groups (``axes_1``) and images recur, and nothing refers to them; name spaces mean nothing in HTML.
    svg = re.sub(r' (?:id="(?:[^"_]+_\d+|image\w+)"|xmlns\S*?="[^"]*")', "", text.getvalue())
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def as_png(figure: Figure) -> bytes:
    """Convert a figure to PNG on white, at 120 dots an inch."""
    data = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(data, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG or SVG file on white; equal figures give equal files."""
    kind = path.suffix.lower()[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context(STYLE):
        write_atomically(
            path, lambda to: figure.savefig(to, format=kind, dpi=200, facecolor="white", metadata=metadata)
        )


PRINTED_CELLS = 13
NAMED_CELLS = 24
LONG_NAME = 4


@themed
def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    *,
    square: bool = False,
    fractions: bool = False,
) -> Figure:
    """Draw a matrix, light to dark from 0, with numbers in the cells and names beside them where there is room.

    Args:
        values: Matrix (R, C) of values from 0.
        rows: Names of the rows.
        columns: Names of the columns.
        labels: Labels of the rows and of the columns.
        square: Draw cells as high as they are wide.
        fractions: The values lie between 0 and 1; otherwise the largest has the darkest colour.
    """
    height = 4.2 if square else min(4.2, max(2.0, 0.9 + 0.26 * len(rows)))
    figure, axes = new_axes(height=height)
    axes.grid(visible=False)
    top = 1.0 if fractions else max(float(values.max(initial=0)), 1e-12)
    axes.imshow(values, cmap=TINT, vmin=0, vmax=top, interpolation="none", aspect="equal" if square else "auto")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(*_names(columns), **(slanted if max(map(len, columns), default=0) > LONG_NAME else {}))
    axes.set_yticks(*_names(rows))
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    if max(values.shape) <= PRINTED_CELLS:
        for (row, column), value in np.ndenumerate(values):
            color = INK if value / top < 0.55 else "#ffffff"  # white on a dark cell, in either theme
            text = f"{value:.2f}" if fractions else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figure


def _names(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return positions and names of ticks; every n-th only if there are too many to read."""
    every = -(-len(names) // NAMED_CELLS)
    return list(range(0, len(names), every)), list(names)[::every]
