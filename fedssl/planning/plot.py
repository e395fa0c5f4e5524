"""Memory, operations and traffic over the rounds as a picture (after LW-FedSSL, arXiv 2401.11647, figure 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.federation.dry import dry_rounds
from fedssl.planning.plan import Planner
from fedssl.server.participation import Participation
from layerwise import Scheme
from layerwise.schemes import scheme_choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#000000", ":"))
"""Colours that colour-blind readers tell apart (Okabe and Ito), and dashes that survive a grey print."""

JUMPS = ("steps-mid", "steps-mid", "default")
"""How the points of a panel are joined: costs of a round jump, sums grow."""

PANELS = ("memory (MiB)", "GMACs a round", "traffic so far (MiB)")


@dataclass(frozen=True)
class Curves:
    """What a client that takes part in every round pays under one scheme; one value a round.

    Args:
        name: Of the scheme.
        memory: Peak of a local step in MiB.
        macs: 10^9 multiply-accumulates.
        traffic: Both directions in MiB, since the run began.
    """

    name: str
    memory: list[float]
    macs: list[float]
    traffic: list[float]


def check_plot(path: Path) -> Path:
    """Returns the path if a picture can be written there.

    Raises:
        ValueError: It is neither PNG nor SVG, or its folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"plot {str(path)!r} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"plot {str(path)!r} cannot be written: there is no folder {str(path.parent)!r}")
    return path


def plot_plan(planner: Planner, path: Path) -> None:
    """Draws the configured scheme beside end-to-end, progressive and layer-wise training.

    Args:
        planner: Of the configured run.
        path: PNG or SVG; the same plan gives the same file.
    """
    draw(all_curves(planner), path)


def all_curves(planner: Planner) -> list[Curves]:
    """Curves of every kind of scheme whose stages share the run's rounds equally, with as few blocks as possible."""
    configured = planner.settings.scheme
    own = _curves(planner, configured, f"{configured.name} (configured)")
    found: dict[str, Curves] = {}
    for scheme in scheme_choices(planner.num_blocks):
        if scheme.name not in found and _divides(planner, scheme):
            found[scheme.name] = _curves(planner, scheme, scheme.name)
    if configured.name in found and replace(own, name=configured.name) == found[configured.name]:
        found[configured.name] = own
        return list(found.values())
    return [*found.values(), own]


def draw(curves: Iterable[Curves], path: Path) -> None:
    """Draws three panels over the rounds and writes them to a file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "fedssl", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        _fill(figure, list(curves))
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=200, metadata=metadata)


def _fill(figure: Figure, curves: list[Curves]) -> None:
    panels = figure.subplots(1, len(PANELS))
    for (color, dashes), each in zip(STYLES, curves, strict=False):
        rounds = range(1, len(each.memory) + 1)
        for panel, values, steps in zip(panels, (each.memory, each.macs, each.traffic), JUMPS, strict=True):
            panel.plot(rounds, values, color=color, ls=dashes, lw=1.8, drawstyle=steps, label=each.name)
    for panel, title in zip(panels, PANELS, strict=True):
        _label(panel, title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, handlelength=3.2)


def _label(panel: Axes, title: str) -> None:
    panel.set_xlabel("round")
    panel.set_ylabel(title)
    panel.set_ylim(bottom=0)
    panel.margins(x=0.02)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)


def _divides(planner: Planner, scheme: Scheme) -> bool:
    stages = len(scheme.stages(planner.num_blocks, planner.num_blocks))
    return planner.settings.rounds % stages == 0


def _curves(planner: Planner, scheme: Scheme, name: str) -> Curves:
    images = max(2, round(sum(planner.images) / len(planner.images)))
    federation = planner.federation(scheme, [], Participation([images]))
    needs = [federation.forecast(options.priced[0], images) for options in federation.server.options]
    reports = [each.report for each in dry_rounds(federation)]
    sent = accumulate(report.down_bytes + report.up_bytes for report in reports)
    return Curves(
        name,
        [needs[report.stage].peak_memory_bytes / 2**20 for report in reports],
        [needs[report.stage].macs / 1e9 for report in reports],
        [total / 2**20 for total in sent],
    )
