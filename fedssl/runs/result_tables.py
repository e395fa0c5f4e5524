"""Tables of a run's results, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedssl.runs.measures import COSTS, ENCODERS, KNN, LANGUAGE, LINEAR, PER_CLASS, RANK, Measure
from fedssl.training.endings import UNFINISHED, shortfall
from fedssl.utils.tables import Table
from fedssl.utils.units import MIB

CLASSIFIERS = {"trained classifier": "classifier", "fine-tuned": "finetuned"}
"""First part of each classifier's keys in ``results.json``, where a linear probe's keys have ``linear``."""


def print_results(results: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print tables of quality and cost, and the run folder."""
    console = console or Console()
    title = " ".join(str(results[key]) for key in ("scheme", "method", "encoder") if key in results)
    console.print(quality_table(results, (KNN, LINEAR, PER_CLASS, RANK), title or "evaluation").rich())
    if "down_bytes_per_client" in results:
        console.print(cost_table(results, "cost of a device over the whole run").rich())
    if results.get("simulated_seconds"):
        minutes = results["simulated_seconds"] / 60
        console.print(f"the run would take {minutes:,.1f} minutes on these devices", highlight=False)
    console.print(f"{results['wall_seconds']:.0f} s; everything is in {folder}", highlight=False, soft_wrap=True)


def print_shortfall(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the last line of an unfinished run; nothing for a finished one."""
    if lacks := shortfall(results):
        (console or Console()).print(f"{UNFINISHED}: {lacks}", style="bold red", highlight=False, soft_wrap=True)


def quality_table(results: dict[str, Any], measures: Sequence[Measure], title: str, caption: str = "") -> Table:
    """Tabulate every evaluated encoder and classifier, or the language model."""
    if "perplexity" in results:
        texts = [measure.text([results]) for measure in LANGUAGE]
        return Table([measure.title for measure in LANGUAGE], [texts], title, caption, text_columns=0)
    keys = {name: [prefix + measure.key for measure in measures] for name, prefix in ENCODERS.items()}
    for name, part in CLASSIFIERS.items():
        keys[name] = [each.key.replace("linear", part) if "linear" in each.key else "" for each in measures]
    rows = [[name, *(f"{results[key]:.2f}" if key in results else "" for key in row)] for name, row in keys.items()]
    header = ["representation", *(measure.title for measure in measures)]
    return Table(header, [row for row in rows if any(row[1:])], title, caption)


def cost_table(results: dict[str, Any], title: str) -> Table:
    """Tabulate a device's costs over the whole run."""
    *totals, kept = COSTS
    rows = []
    for name, end in (("mean", "per_client"), ("largest", "max_client")):
        values = [results[cost.key.replace("per_client", end)] / cost.unit for cost in totals]
        rows.append([name, *(f"{value:,.2f}" for value in values)])
    caption = f"activations kept for backward, peak of a step: {results[kept.key] / MIB:,.2f} MiB"
    return Table(["device", *(cost.title for cost in totals)], rows, title, caption)
