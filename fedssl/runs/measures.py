"""Measures of a run's quality and cost, and their mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedssl.utils.units import MIB

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """Number of ``results.json``.

    Args:
        title: Heading of its column, with the unit.
        key: Key in ``results.json``.
        unit: Divisor that converts the number to the unit of the title.
        is_cost: Compare the number with that of end-to-end training.
        digits: Digits shown after the decimal point.
    """

    title: str
    key: str
    unit: float = 1
    is_cost: bool = False
    digits: int = 2

    def values(self, results: Sequence[Results], prefix: str = "") -> list[float]:
        """Values of the runs; empty if one of them lacks the number.

        Args:
            results: Results of the runs.
            prefix: Prefix of the key, for another encoder than the trained one (see ``ENCODERS``).
        """
        known = [run[prefix + self.key] / self.unit for run in results if prefix + self.key in run]
        return known if len(known) == len(results) else []

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
ACCURACIES = (
    KNN,
    LINEAR,
    Measure("classifier top-1 %", "classifier_top1"),
    Measure("fine-tuned top-1 %", "finetuned_top1"),
)
COSTS = (
    Measure("received MiB", "down_bytes_per_client", MIB, is_cost=True),
    Measure("sent MiB", "up_bytes_per_client", MIB, is_cost=True),
    Measure("GMACs", "macs_per_client", 1e9, is_cost=True),
    Measure("kept MiB", "peak_activation_bytes", MIB, is_cost=True),
)
TIMES = (Measure("simulated min", "simulated_seconds", 60), Measure("wall s", "wall_seconds", digits=0))
MEASURES = (*ACCURACIES, *COSTS, *TIMES)


ENCODERS = {"trained": "", "start weights": "start_", "random init": "random_init_"}
"""Prefix of each evaluated encoder's keys in ``results.json``."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample (n - 1); ``None`` for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the mean, and the standard deviation of values that differ."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:,.{digits}f}" + (f" ± {deviation:,.{digits}f}" if len(set(values)) > 1 else "")
