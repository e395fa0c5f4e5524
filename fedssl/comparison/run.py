"""Run of a comparison, read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedssl.comparison.configuration import Configuration, read_configuration
from fedssl.comparison.grid import GridRun
from fedssl.comparison.runner import rounds_done
from fedssl.runs.changed_settings import flatten
from fedssl.runs.run_folder import CONFIG, read_results
from fedssl.training.endings import shortfall


@dataclass(frozen=True)
class Run:
    """Run that has finished, or the reason why it has not.

    Args:
        folder: Run folder.
        configuration: All settings of the run.
        results: Content of ``results.json``; empty if the run has not finished, whatever it measured on its way.
        failure: Reason why results are missing; empty if they are not.
    """

    folder: Path
    configuration: Configuration
    results: dict[str, Any]
    failure: str = ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted name."""
        return flatten(self.configuration)

    @property
    def seed(self) -> int:
        """Seed of every random choice."""
        return int(self.settings["seed_everything"])

    @property
    def data_set(self) -> str:
        """Name of the training and evaluation data; accuracies on different data are not comparable."""
        trained = self.settings.get("data.dataset", "unknown data")
        if trained == "folder":
            trained = f"images in {self.settings['data.root']}"
        tested = self.settings.get("data.eval_dataset") or trained
        return trained if tested == trained else f"{trained}, evaluated on {tested}"

    @property
    def facts(self) -> dict[str, str]:
        """Description of the run by the heading of the column; empty if the run has not ended."""
        if not self.results:
            return {}
        found = self.results
        facts = {
            "scheme": found["scheme"],
            "SSL method": found["method"],
            "backbone": f"{found['encoder']}, {found['depth']} blocks",
        }
        if "clients" in found:
            facts |= {
                "clients": f"{found['clients_per_round']} of {found['clients']} a round",
                "partition": self._partition(),
                "rounds": f"{found['rounds']} of {found['local_epochs']} local epochs",
            }
        return facts | {"commit": found["commit"] or "unknown"}

    def _partition(self) -> str:
        prefix = "data.partition."
        arguments = [f"{key.removeprefix(prefix)}={value}" for key, value in self.settings.items() if prefix in key]
        return self.settings["data.partition"] + (f"({', '.join(arguments)})" if arguments else "")


def read_run(folder: Path) -> Run:
    """Read the run of a folder.

    Raises:
        ValueError: Its configuration or its results are damaged.
    """
    results, done = read_results(folder), rounds_done(folder)
    failure = shortfall(results)
    if not results:
        failure = f"not finished, {done} rounds done" if done else "not begun"
    return Run(folder, read_configuration(folder), {} if failure else results, failure)


def run_of(planned: GridRun, failed: dict[Path, str]) -> Run:
    """Read a planned run after the comparison has tried to run it.

    Args:
        planned: Planned run.
        failed: Reasons of failed runs, by folder.
    """
    results = read_results(planned.folder)
    failure = failed.get(planned.folder) or shortfall(results)
    return Run(planned.folder, planned.configuration, {} if failure else results, failure)


def find_folders(places: Sequence[Path]) -> list[Path]:
    """Find run folders among and below the given folders, each once, in the given order.

    Raises:
        ValueError: One of the folders holds no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        files = sorted(place.rglob(CONFIG))
        below = [path.parent for path in files if "wandb" not in path.relative_to(place).parts]
        if not below:
            raise ValueError(f"there is no run in {place}: a run's folder holds {CONFIG}")
        found |= dict.fromkeys(below)
    return list(found)
