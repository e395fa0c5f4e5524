"""Memory, operations and traffic over the rounds as a picture (after LW-FedSSL, arXiv 2401.11647, figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fedssl.federation.dry import dry_rounds
from fedssl.planning.plan import Planner
from fedssl.runs.report.figures import Line, draw_lines, finish_rounds
from fedssl.runs.report.theme import new_figure, themed
from fedssl.server.participation import Participation
from fedssl.utils.units import MIB
from layerwise import Scheme
from layerwise.schemes import scheme_choices

PANELS = (("memory (MiB)", True), ("GMACs a round", True), ("traffic so far (MiB)", False))
"""Labels of the panels. True joins points by steps: the cost of a round jumps, a sum grows."""


class Curves(NamedTuple):
    """Costs of a client that takes part in every round under one scheme, in the order of the panels; one value a round.

    Attributes:
        memory: Peak of a local step in MiB.
        macs: 10^9 multiply-accumulates.
        traffic: Both directions in MiB, since the run began.
    """

    memory: list[float]
    macs: list[float]
    traffic: list[float]


def all_curves(planner: Planner) -> dict[str, Curves]:
    """Return curves of every kind of scheme whose stages divide the run's rounds equally, and of the configured one."""
    configured = planner.settings.scheme
    found: dict[str, Curves] = {}
    # The choices of a kind begin with the fewest blocks a stage.
    for scheme in scheme_choices(planner.num_blocks):
        stages = len(scheme.stages(planner.num_blocks, planner.num_blocks))
        if scheme.name not in found and planner.settings.rounds % stages == 0:
            found[scheme.name] = _curves(planner, scheme)
    own, label = _curves(planner, configured), f"{configured.name} (configured)"
    if found.get(configured.name) == own:
        return {label if name == configured.name else name: curves for name, curves in found.items()}
    return found | {label: own}


@themed
def plan_figure(schemes: Mapping[str, Curves]) -> Figure:
    """Draw three panels over the rounds, with a line for each scheme."""
    figure = new_figure(9.6, 3.2)
    panels = figure.subplots(1, len(PANELS))
    for axes, (label, steps), values in zip(panels, PANELS, zip(*schemes.values(), strict=True), strict=True):
        rounds = np.arange(1, len(values[0]) + 1)
        lines = [Line((rounds, np.array(each)), name, steps) for name, each in zip(schemes, values, strict=True)]
        draw_lines(axes, lines, label)
        finish_rounds(axes, "round", ())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), handlelength=3.2)
    return figure


def _curves(planner: Planner, scheme: Scheme) -> Curves:
    # A client with one image takes no step, and would show a run without costs.
    images = max(2, round(sum(planner.images) / len(planner.images)))
    federation = planner.federation(scheme, [], Participation([images]))
    needs = [federation.forecast(options.priced[0], images) for options in federation.server.options]
    reports = [each.report for each in dry_rounds(federation)]
    memory = [needs[report.stage].peak_memory_bytes / MIB for report in reports]
    macs = [needs[report.stage].macs / 1e9 for report in reports]
    sent = accumulate(report.down_bytes + report.up_bytes for report in reports)
    return Curves(memory, macs, [total / MIB for total in sent])
