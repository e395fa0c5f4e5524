"""Trials of a tuning: what each choice gave on validation images, and which is taken."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedssl.runs.results import spread
from fedssl.utils.tables import Table

NOTE = (
    "Validation kNN % of the last evaluation of each tuning run, on labelled training images held out as queries, mean "
    "± standard deviation over the tuning seeds. The highest mean of a row is chosen, the first of equal ones; no test "
    "image has a say. Tuning seeds are no seeds of the comparison."
)


@dataclass(frozen=True)
class Trial:
    """Choice that was tried for a row.

    Args:
        choices: Choice by axis.
        accuracies: Validation kNN in percent, one a tuning seed; empty if one of the runs failed.
        failure: Reason of the failure; empty for none.
    """

    choices: dict[str, str]
    accuracies: list[float]
    failure: str = ""


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest mean accuracy, the first of equal ones; ``None`` if all have failed."""
    known = [trial for trial in trials if trial.accuracies]
    return max(known, key=lambda trial: statistics.fmean(trial.accuracies), default=None)


def table_of_trials(tried: Mapping[str, Sequence[Trial]]) -> Table | None:
    """Tabulate what each choice gave; ``None`` without tuning.

    Args:
        tried: Trials by the name of their row.
    """
    axes = list(dict.fromkeys(axis for trials in tried.values() for trial in trials for axis in trial.choices))
    cells = []
    for name, trials in tried.items():
        for trial in trials:
            found = spread(trial.accuracies) if trial.accuracies else trial.failure
            cells.append([name, *trial.choices.values(), "chosen" if trial is best(trials) else "", found])
    if not cells:
        return None
    header = ["row", *axes, "", "validation kNN %"]
    return Table(header, cells, "Tuning", NOTE, text_columns=len(axes) + 2)
