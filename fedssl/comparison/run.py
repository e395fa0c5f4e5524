"""Runs of a comparison, read from their folders, and the differences between their configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedssl.cli.command import parse
from fedssl.runs.changed_settings import differences_of_flat, flatten
from fedssl.runs.run_folder import CHECKPOINTS, CONFIG, read_results
from fedssl.training.checkpoints import checkpoints_of
from fedssl.training.endings import shortfall

Configuration = dict[str, Any]
TUNING = "tuning"
"""Folder of the tuning runs in that of a comparison."""
ASIDE = {"wandb", TUNING}
"""Folders whose configurations are none of a comparison's runs."""
WHERE = ("run_dir", "ckpt_path", "weights_only", "changed_settings", "show_images")
"""Settings of output and resume, which change no result; ``trainer.logger`` is one too."""


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
        if elsewhere := self.settings.get("data.eval_root"):
            tested = f"{self.settings.get('data.eval_dataset') or self.settings['data.dataset']} in {elsewhere}"
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


def find_folders(places: Sequence[Path]) -> list[Path]:
    """Find run folders among and below the given folders, each once, in the given order.

    Raises:
        ValueError: One of the folders holds no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        files = sorted(place.rglob(CONFIG))
        below = [path.parent for path in files if ASIDE.isdisjoint(path.relative_to(place).parts)]
        if not below:
            raise ValueError(f"there is no run in {place}: a run's folder holds {CONFIG}")
        found |= dict.fromkeys(below)
    return list(found)


def rounds_done(folder: Path) -> int:
    """Count the rounds (or epochs) in a run's newest checkpoint."""
    found = [int(path.stem) + 1 for path in checkpoints_of(folder / CHECKPOINTS) if path.stem.isdigit()]
    return max(found, default=0)


def read_configuration(folder: Path) -> Configuration:
    """Read ``config.yaml`` of a run folder.

    Raises:
        ValueError: The file is not the configuration of a run.
    """
    found = yaml.safe_load((folder / CONFIG).read_text())
    if not isinstance(found, dict) or not {"seed_everything", "model", "data"} <= found.keys():
        raise ValueError(f"{folder / CONFIG} is not the configuration of a run")
    return found


def holds(folder: Path, wanted: Configuration) -> bool:
    """Tell if a folder's run has this configuration; settings missing from its file take today's defaults."""
    if comparable(read_configuration(folder)) == comparable(wanted):
        return True
    try:
        return comparable(parse(["-c", str(folder / CONFIG)])) == comparable(wanted)
    except ValueError:
        return False


def comparable(configuration: Configuration) -> Configuration:
    """Return the settings that decide the results of a run."""
    trainer = {key: value for key, value in configuration.get("trainer", {}).items() if key != "logger"}
    return {key: value for key, value in configuration.items() if key not in WHERE} | {"trainer": trainer}


def differences(configurations: list[Configuration]) -> dict[str, list[str]]:
    """Find the settings in which configurations differ, as ``differences_of_flat`` does."""
    return differences_of_flat([flatten(comparable(configuration)) for configuration in configurations])
