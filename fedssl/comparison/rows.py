"""Rows of a comparison: runs that differ in nothing but their seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedssl.comparison.configuration import comparable, differences
from fedssl.comparison.measures import Measure, mean_and_deviation
from fedssl.comparison.run import Run

SCHEME, METHOD = "scheme", "SSL method"
NAMED = ("model.scheme", "model.method")
EPOCHS, ROUNDS = "trainer.max_epochs", "model.rounds"


@dataclass(frozen=True)
class Row:
    """Runs of one configuration.

    Args:
        labels: What tells it from the other rows, by the heading of its column.
        runs: One a seed.
    """

    labels: dict[str, str]
    runs: list[Run]

    @property
    def name(self) -> str:
        """The labels in one."""
        return ", ".join(text for text in self.labels.values() if text)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of the runs that have ended."""
        return [run.results for run in self.runs if run.results]

    @property
    def data_set(self) -> str:
        """What its runs were trained and evaluated on."""
        return self.runs[0].data_set

    @property
    def facts(self) -> dict[str, str]:
        """What was run, in words; several words if the runs differ."""
        ended = [run for run in self.runs if run.results]
        keys = ended[0].facts if ended else ()
        facts = {key: "; ".join(dict.fromkeys(run.facts[key] for run in ended)) for key in keys}
        return facts | {"seeds": ", ".join(str(run.seed) for run in ended)} if ended else {}

    @property
    def failures(self) -> list[str]:
        """Which runs have no results, and why."""
        return [f"seed {run.seed}: {run.failure}" for run in self.runs if run.failure]


def group_runs(runs: Sequence[Run]) -> list[Row]:
    """Puts together what differs in its seed only, and names it by scheme, method and what else differs.

    Raises:
        ValueError: Two runs have the same configuration and the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = comparable(run.configuration) | {"seed_everything": None}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    for group in groups.values():
        seeds = {run.seed: run for run in group}
        if len(seeds) < len(group):
            folders = ", ".join(str(run.folder) for run in group)
            raise ValueError(f"these folders hold the same configuration with the same seed: {folders}")
    return [Row(labels, group) for labels, group in zip(_labels(list(groups.values())), groups.values(), strict=True)]


def _labels(groups: list[list[Run]]) -> list[dict[str, str]]:
    """Scheme, method and settings in which the groups differ; the scheme of a group alone."""
    different = differences([group[0].configuration | {"seed_everything": None} for group in groups])
    hidden = {*NAMED, *([EPOCHS] if ROUNDS in different else [])}
    shown = {_short(key): texts for key, texts in different.items() if key not in hidden}
    every = [_names(group[0]) | {key: texts[at] for key, texts in shown.items()} for at, group in enumerate(groups)]
    telling = [key for key in every[0] if len({labels[key] for labels in every}) > 1] or [SCHEME]
    return [{key: labels[key] for key in telling} for labels in every]


def baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of end-to-end training that a row is set against; ``None`` if there is none.

    That is a row of the same data set, method and encoder whose runs have one stage only; among several the one with
    most labels in common, and among those the first.
    """
    alike = [other for other in rows if other.results and _kind(other) == _kind(row) and _stages(other) == 1]
    return max(alike, key=lambda other: len(row.labels.items() & other.labels.items()), default=None)


def ratio(measure: Measure, row: Row, against: Row | None) -> float | None:
    """Mean cost of a row as a share of another row's; ``None`` where there is nothing to divide."""
    own = measure.values(row.results)
    other = measure.values(against.results) if against else []
    if not own or not other or mean_and_deviation(other)[0] == 0:
        return None
    return mean_and_deviation(own)[0] / mean_and_deviation(other)[0]


def _names(run: Run) -> dict[str, str]:
    scheme = run.settings.get("model.scheme") or run.settings["model"]
    return {SCHEME: run.facts.get(SCHEME, scheme), METHOD: run.facts.get(METHOD, run.settings["model.method"])}


def _short(key: str) -> str:
    return key.removeprefix("model.").removeprefix("trainer.")


def _kind(row: Row) -> tuple[Any, ...]:
    found = row.results[0] if row.results else {}
    return row.data_set, found.get("method"), found.get("encoder")


def _stages(row: Row) -> int:
    return max(len(found.get("stage_rounds", ())) for found in row.results)
