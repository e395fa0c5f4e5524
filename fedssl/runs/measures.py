"""Measures of a run's quality and cost: mean and standard deviation over seeds, and tables of one run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedssl.training.run_progress import UNFINISHED, shortfall
from fedssl.utils.tables import Table
from fedssl.utils.units import MIB

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """Number of ``results.json``.

    Args:
        title: Heading of its column, with the unit.
        key: Key in ``results.json``.
        unit: Divisor that converts the number to the unit of the title.
        digits: Digits shown after the decimal point.
    """

    title: str
    key: str
    unit: float = 1
    digits: int = 2

    def values(self, results: Sequence[Results], prefix: str = "") -> list[float]:
        """Values of the runs; empty if one of them lacks the number.

        Args:
            results: Results of the runs.
            prefix: Prefix of the key, for another encoder than the trained one (see ``ENCODERS``).
        """
        known = [run[prefix + self.key] / self.unit for run in results if prefix + self.key in run]
        return known if len(known) == len(results) else []

    def mean(self, results: Sequence[Results]) -> float | None:
        """Return the mean over the runs; ``None`` if one of them lacks the number."""
        values = self.values(results)
        return statistics.fmean(values) if values else None

    def text(self, results: Sequence[Results], prefix: str = "") -> str:
        """Format mean and standard deviation; empty if a run lacks the number."""
        values = self.values(results, prefix)
        return spread(values, self.digits) if values else ""


KNN, LINEAR = Measure("kNN top-1 %", "knn_top1"), Measure("linear top-1 %", "linear_top1")
PER_CLASS, RANK = Measure("linear per class %", "linear_mean_per_class"), Measure("RankMe", "rankme")
QUALITY = (KNN, LINEAR, PER_CLASS, Measure("linear F1 %", "linear_f1"), RANK, Measure("feature spread", "feature_std"))
LANGUAGE = (
    Measure("perplexity a character", "perplexity", digits=3),
    Measure("bits a character", "bits_per_character", digits=3),
    Measure("held-out characters", "test_characters", digits=0),
)
CLASSIFIED = (Measure("classifier top-1 %", "classifier_top1"), Measure("fine-tuned top-1 %", "finetuned_top1"))
ACCURACIES = (KNN, LINEAR, *CLASSIFIED)
TRAFFIC = (Measure("received MiB", "down_bytes_per_client", MIB), Measure("sent MiB", "up_bytes_per_client", MIB))
MACS, KEPT = Measure("GMACs", "macs_per_client", 1e9), Measure("kept MiB", "peak_activation_bytes", MIB)
COSTS = (*TRAFFIC, MACS, KEPT)
"""Measures that are compared with those of end-to-end training."""
TIMES = (Measure("simulated min", "simulated_seconds", 60), Measure("wall s", "wall_seconds", digits=0))
MEASURES = (*ACCURACIES, *COSTS, *TIMES)
ENCODERS = {"trained": "", "start weights": "start_", "random init": "random_init_"}
"""Prefix of each evaluated encoder's keys in ``results.json``."""
CLASSIFIERS = {"trained classifier": "classifier", "fine-tuned": "finetuned"}
"""First part of each classifier's keys in ``results.json``, where a linear probe's keys have ``linear``."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample (n - 1); ``None`` for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the mean, and the standard deviation of values that differ."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:,.{digits}f}" + (f" ± {deviation:,.{digits}f}" if len(set(values)) > 1 else "")


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


def print_shortfall(results: dict[str, Any]) -> None:
    """Print the last line of an unfinished run; nothing for a finished one."""
    if lacks := shortfall(results):
        Console().print(f"{UNFINISHED}: {lacks}", style="bold red", highlight=False, soft_wrap=True)


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
    totals = (*TRAFFIC, MACS)
    rows = []
    for name, end in (("mean", "per_client"), ("largest", "max_client")):
        values = [results[cost.key.replace("per_client", end)] / cost.unit for cost in totals]
        rows.append([name, *(f"{value:,.2f}" for value in values)])
    caption = f"activations kept for backward, peak of a step: {results[KEPT.key] / KEPT.unit:,.2f} MiB"
    return Table(["device", *(cost.title for cost in totals)], rows, title, caption)
