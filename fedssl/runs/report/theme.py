"""Theme of figures, and their conversion to SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, GRID, PAPER = "#1b1f24", "#5b6470", "#b9c0c8", "#e4e7eb", "#fefefe"
SERIES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#6250bd",
    "#8c5a3c",
    "#7c838c",
    "#8f9a1c",
)
"""Colours of series and classes: six of Okabe and Ito's, which colour-blind readers can tell apart, and four more."""

DARK = {
    INK: "#e8eaed",
    MUTED: "#a4acb6",
    RULE: "#59616b",
    GRID: "#2d333b",
    PAPER: "#171a1f",
} | dict(
    zip(
        SERIES,
        (
            "#4ba8e6",
            "#ff8c42",
            "#34c79d",
            "#e6a0c8",
            "#ffc14d",
            "#9ad6ff",
            "#a99bff",
            "#cc9a7a",
            "#a9afb7",
            "#c6d14f",
        ),
        strict=True,
    )
)
"""Counterpart of each colour on a dark page; any other colour looks the same on both pages."""

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # the name of a class may be "$x$", which is no formula
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "image.composite_image": False,
    # Text stays text: it takes the page's font, can be searched and read aloud, and makes small files.
    "svg.fonttype": "none",
    # A fixed salt gives equal ids to equal figures, so that equal runs write equal pages.
    "svg.hashsalt": "fedssl",
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


def new_axes(width: float = 4.8, height: float = 2.9) -> tuple[Figure, Axes]:
    """Create a figure with one panel; sizes in inches, of which a column of the page is 4.8 wide."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
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


def tint(values: Any, color: str = SERIES[0]) -> np.ndarray:
    """Map values (...) in 0..1 to colours between transparent and ``color``, as RGBA (..., 4).

    Transparency instead of white makes a heat map fit a light and a dark page.
    """
    alpha = np.nan_to_num(np.clip(np.asarray(values, dtype=float), 0, 1))
    rgb = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return np.concatenate([np.broadcast_to(rgb, (*alpha.shape, 3)), alpha[..., None]], axis=-1)


def as_svg(figure: Figure, label: str, prefix: str) -> str:
    """Convert a figure to an ``<svg>`` element that stands inside a page.

    Colours become CSS variables (see ``variables``), text stays text in the page's font, and nothing refers to anything
    outside the page.

    Args:
        figure: Figure to convert.
        label: Description for readers who cannot see the figure.
        prefix: Prefix that makes the figure's ids unique in the page.
    """
    text = io.StringIO()
    with rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    # matplotlib writes a document of its own. Within a page, its style sheet would apply to every other figure, and
    # its name spaces and size have no meaning.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r' (?:xmlns(?::\w+)?|version|width="[\d.]+pt" height)="[^"]*"', "", svg, count=4)
    # Figures share one name space of ids in a page: without a prefix, one figure would take another's clip paths. Ids
    # that nothing refers to are dropped, since they are most of them.
    named = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in named else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for color in DARK:
        svg = re.sub(color, f"var({_variable(color)})", svg, flags=re.IGNORECASE)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def as_png(figure: Figure) -> bytes:
    """Convert a figure to PNG on white, at 120 dots an inch."""
    data = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(data, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def variables(dark: bool) -> str:
    """Declare the CSS variables of the colours, for the dark page or the light one."""
    return " ".join(f"{_variable(color)}: {other if dark else color};" for color, other in DARK.items())


def _variable(color: str) -> str:
    names = {INK: "ink", MUTED: "muted", RULE: "rule", GRID: "grid", PAPER: "paper"}
    return f"--{names.get(color) or f'series-{SERIES.index(color)}'}"


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
    """Draw a matrix, light to dark from 0, with numbers in the cells and names beside them where there is room.

    Args:
        values: Matrix (R, C) of values from 0.
        rows: Names of the rows.
        columns: Names of the columns.
        row_label: Label of the rows.
        column_label: Label of the columns.
        square: Draw cells as high as they are wide.
        highest: Value of the darkest colour; ``None`` takes the largest value.
        digits: Digits after the decimal point.
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
            color = INK if value / top < 0.55 else "#ffffff"  # white on a dark cell, in either theme
            text = f"{value:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figure


def _names(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions and names of ticks; every n-th only if there are too many to read."""
    every = -(-len(names) // NAMED_CELLS)
    return list(range(0, len(names), every)), list(names)[::every]
