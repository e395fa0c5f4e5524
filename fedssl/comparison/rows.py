"""Rows of a comparison: runs that differ in nothing but their seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedssl.comparison.run import Run, comparable, differences
from fedssl.comparison.trials import Trial, best
from fedssl.runs.results import COSTS, Measure

SCHEME, METHOD = "scheme", "SSL method"
NAMED = ("model.scheme", "model.method")
EPOCHS, ROUNDS = "trainer.max_epochs", "model.rounds"


@dataclass(frozen=True)
class Row:
    """Runs of one configuration.

    Args:
        labels: Texts that tell the row from the others, by the heading of their column.
        runs: Runs, one a seed.
        trials: Trials of the settings that were tuned for this row.
    """

    labels: dict[str, str]
    runs: list[Run]
    trials: Sequence[Trial] = ()

    @property
    def name(self) -> str:
        """Labels in one text."""
        return ", ".join(text for text in self.labels.values() if text)

    def is_called(self, text: str) -> bool:
        """Tell if a text is the row's name or one of its labels."""
        return text in (self.name, *self.labels.values())

    @property
    def results(self) -> list[dict[str, Any]]:
        """Results of the runs that have ended."""
        return [run.results for run in self.runs if run.results]

    @property
    def data_set(self) -> str:
        """Name of the data that the runs were trained and evaluated on."""
        return self.runs[0].data_set

    @property
    def kind(self) -> tuple[Any, ...]:
        """Data set, method and encoder: costs and accuracies of other kinds are not comparable."""
        found = self.results[0] if self.results else {}
        return self.data_set, found.get("method"), found.get("encoder")

    @property
    def stages(self) -> int:
        """Largest number of stages of a run that has ended; 0 without a federation."""
        return max((len(found.get("stage_rounds", ())) for found in self.results), default=0)

    @property
    def facts(self) -> dict[str, str]:
        """Description of the runs by heading; where they differ, all texts are joined."""
        ended = [run for run in self.runs if run.results]
        keys = ended[0].facts if ended else ()
        facts = {key: "; ".join(dict.fromkeys(run.facts[key] for run in ended)) for key in keys}
        chosen = best(self.trials)
        facts |= chosen.choices if chosen else {}
        return facts | {"seeds": ", ".join(str(run.seed) for run in ended)} if ended else {}

    def by_seed(self, measure: Measure) -> dict[int, float]:
        """Return a measure of the runs that have it, by their seed."""
        found = {run.seed: measure.values([run.results]) for run in self.runs if run.results}
        return {seed: values[0] for seed, values in found.items() if values}

    @property
    def failures(self) -> list[str]:
        """Runs without results, with the reason."""
        return [f"seed {run.seed}: {run.failure}" for run in self.runs if run.failure]


def group_runs(runs: Sequence[Run]) -> list[Row]:
    """Group runs that differ in their seed only, and label the groups by scheme, method and differing settings.

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
    """Return scheme, method and settings in which the groups differ; the scheme if nothing differs."""
    different = differences([group[0].configuration | {"seed_everything": None} for group in groups])
    # The classes of model and data follow from the scheme, the epochs from the rounds: they would only repeat them.
    hidden = {*NAMED, "model", "data", *([EPOCHS] if ROUNDS in different else [])}
    shown = {re.sub(r"^(model|trainer)\.", "", key): each for key, each in different.items() if key not in hidden}
    every = [_names(group[0]) | {key: texts[at] for key, texts in shown.items()} for at, group in enumerate(groups)]
    telling = [key for key in every[0] if len({labels[key] for labels in every}) > 1] or [SCHEME]
    return [{key: labels[key] for key in telling} for labels in every]


def baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """Find the row of end-to-end training to compare a row with; ``None`` if the comparison has none.

    It has the same data set, method and encoder, and runs of a single stage. Among several such rows, the one with most
    labels in common is taken, then the first.
    """
    return _closest(row, (other for other in rows if other.results and other.kind == row.kind and other.stages == 1))


def reference(row: Row, rows: Sequence[Row], called: str | None = None) -> Row | None:
    """Find the row that a row's accuracies are set against; ``None`` if there is none.

    Args:
        row: Row to compare.
        rows: All rows of the comparison.
        called: Name, or one label, of the reference; among several rows with this label the one with most labels in
            common is taken. ``None`` takes the row of end-to-end training.
    """
    if called is None:
        return baseline(row, rows)
    return _closest(row, (other for other in rows if other.data_set == row.data_set and other.is_called(called)))


def check_reference(called: str | None, every: Sequence[Mapping[str, str]]) -> None:
    """Check that a reference is a row.

    Args:
        called: Name or label of the reference; ``None`` for end-to-end training.
        every: Labels of all rows.

    Raises:
        ValueError: No row has this name or label.
    """
    rows = [Row(dict(labels), []) for labels in every]
    if called is not None and not any(row.is_called(called) for row in rows):
        names = " | ".join(row.name for row in rows)
        raise ValueError(f"--reference {called!r} is no row and no choice; rows are: {names}")


def _closest(row: Row, candidates: Iterable[Row]) -> Row | None:
    return max(candidates, key=lambda other: len(row.labels.items() & other.labels.items()), default=None)


def shares(row: Row, rows: Sequence[Row]) -> dict[Measure, float]:
    """Divide a row's mean costs by those of end-to-end training; costs that are unknown, or 0 there, are left out."""
    found: dict[Measure, float] = {}
    if against := baseline(row, rows):
        for cost in COSTS:
            own, whole = cost.mean(row.results), cost.mean(against.results)
            found |= {cost: own / whole} if own is not None and whole else {}
    return found


def _names(run: Run) -> dict[str, str]:
    scheme = run.settings.get("model.scheme") or run.settings["model"]
    return {SCHEME: run.facts.get(SCHEME, scheme), METHOD: run.facts.get(METHOD, run.settings["model.method"])}
