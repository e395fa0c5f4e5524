"""Grid of a comparison: axes of named choices, and the runs of all combinations."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, product
from pathlib import Path

from fedssl.cli.command import parse
from fedssl.comparison.run import Configuration, comparable, holds
from fedssl.runs.run_folder import CHECKPOINTS, CONFIG, RESULTS, is_finished
from fedssl.training.checkpoints import checkpoints_of

OURS = ("--run_dir", "--ckpt_path", "--seed_everything")
Choices = dict[str, dict[str, str | None]]


@dataclass(frozen=True)
class Grid:
    """Every combination of choices, with every seed.

    Args:
        axes: Choices of each axis, and for each choice arguments of ``train.py fit``, written as in a shell. An axis is
            a column of the table, and the choices are its entries. The first axis usually names the configuration file
            (``-c lw_fedssl.yaml``); later axes override earlier ones.
        seeds: Seeds; each combination is run once with each of them.
        settings: Arguments that every run gets after those of its choices.
        tune: Further axes, of which no choice is a row: for each row, the choice (or combination of choices) with the
            highest kNN accuracy on validation images is taken.
        tuning_seeds: Seeds of the tuning runs; all differ from ``seeds``.
        tuning_settings: Arguments that tuning runs get last, such as fewer rounds.

    Raises:
        ValueError: An axis, choice or seed is missing, a seed is negative or doubled, tuning and comparison share a
            seed or an axis, or arguments set what the comparison itself decides.
    """

    axes: Choices = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    settings: str = ""
    tune: Choices = field(default_factory=dict)
    tuning_seeds: list[int] = field(default_factory=list)
    tuning_settings: str = ""

    def __post_init__(self) -> None:
        axes = self.axes | self.tune
        if not self.axes or not all(axes.values()):
            raise ValueError(f"axes needs at least one choice on each axis, got {axes}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers of at least 0, got {self.seeds}")
        self._check_tuning()
        texts = [text for choices in axes.values() for text in choices.values()]
        for text in [self.settings, self.tuning_settings, *texts]:
            for argument in shlex.split(text or ""):
                if argument.partition("=")[0] in OURS:
                    raise ValueError(f"{argument}: the comparison itself decides about {', '.join(OURS)}")

    def _check_tuning(self) -> None:
        if bool(self.tune) != bool(self.tuning_seeds) or (self.tuning_settings and not self.tune):
            raise ValueError(
                f"tune and tuning_seeds belong together, and tuning_settings to both: got tune {self.tune}, "
                f"tuning_seeds {self.tuning_seeds}, tuning_settings {self.tuning_settings!r}"
            )
        if shared := {*self.seeds} & {*self.tuning_seeds}:
            raise ValueError(f"tuning_seeds must differ from seeds, got {shared} in both")
        if names := {*self.axes} & {*self.tune}:
            raise ValueError(f"tune and axes must have different names, got {names} in both")

    def rows(self, chosen: Sequence[Mapping[str, str]] = ()) -> list[tuple[dict[str, str], list[str]]]:
        """Return the choices of each combination by axis, and their joined arguments.

        Args:
            chosen: Choice by axis of ``tune``, for each row.
        """
        rows = []
        for index, picked in enumerate(product(*(choices.items() for choices in self.axes.values()))):
            names, texts = zip(*picked, strict=True)
            tuned = [self.tune[axis][choice] for axis, choice in chosen[index].items()] if chosen else []
            arguments = shlex.split(" ".join(filter(None, [*texts, *tuned, self.settings])))
            rows.append((dict(zip(self.axes, names, strict=True)), arguments))
        return rows

    def tuning(self) -> Grid:
        """Return the grid of the tuning runs: the tuned axes vary fastest."""
        return Grid(self.axes | self.tune, self.tuning_seeds, f"{self.settings} {self.tuning_settings}")


@dataclass(frozen=True)
class GridRun:
    """Run of a grid.

    Args:
        name: Display name, without the seed.
        arguments: Arguments of ``fit`` before folder and seed.
        seed: Seed of every random choice.
        folder: Run folder, which may not exist yet.
        configuration: All settings; ``place`` fills it in.
    """

    name: str
    arguments: list[str]
    seed: int
    folder: Path
    configuration: Configuration = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Tell if the run has completed."""
        return is_finished(self.folder)


def plan_grid(grid: Grid, parent: Path, chosen: Sequence[Mapping[str, str]] = ()) -> list[list[GridRun]]:
    """Plan the runs of each row, one for each seed.

    Args:
        grid: Axes and seeds.
        parent: Folder of the runs' folders.
        chosen: Choice by axis of ``tune``, for each row.

    Raises:
        ValueError: ``fit`` would refuse a run, or two rows are the same.
    """
    runs = []
    for labels, arguments in grid.rows(chosen):
        name = ", ".join(labels.values())
        runs += [GridRun(name, arguments, seed, parent / f"{slug(name)}-seed{seed}") for seed in grid.seeds]
    placed, seeds = place(runs), len(grid.seeds)
    return [placed[start : start + seeds] for start in range(0, len(placed), seeds)]


def place(runs: list[GridRun]) -> list[GridRun]:
    """Resolve the runs' configurations, and give each run a folder that is free or holds the same configuration.

    A folder with another configuration is left alone: ``-2``, or the next free number, is appended to the name.

    Raises:
        ValueError: ``fit`` would refuse a run, or two of them are the same.
    """
    placed: list[GridRun] = []
    resolved: dict[tuple[str, ...], Configuration] = {}
    for run in runs:
        key = tuple(run.arguments)
        if key not in resolved:
            try:
                resolved[key] = parse(run.arguments)
            except ValueError as error:
                raise ValueError(f"{run.name}: {error}") from error
        configuration = resolved[key] | {"seed_everything": run.seed}
        for other in placed:
            if comparable(other.configuration) == comparable(configuration):
                raise ValueError(f"{other.name!r} and {run.name!r} are the same run: {' '.join(run.arguments)}")
        numbered = (run.folder.with_name(f"{run.folder.name}-{number}") for number in count(2))
        free = (each for each in chain([run.folder], numbered) if each not in {other.folder for other in placed})
        folder = next(each for each in free if _is_for(each, configuration))
        placed.append(replace(run, folder=folder, configuration=configuration))
    return placed


def slug(name: str) -> str:
    """Replace everything but letters and digits in a name by underscores."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _is_for(folder: Path, configuration: Configuration) -> bool:
    """Tell if a folder holds no run, or one with this configuration."""
    if (folder / CONFIG).exists():
        return holds(folder, configuration)
    return not (folder / RESULTS).exists() and not checkpoints_of(folder / CHECKPOINTS)
