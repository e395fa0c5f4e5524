"""The whole configuration of a run before it starts, and in what configurations differ."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fedssl.cli.command import main
from fedssl.cli.lightning import FedSSLCLI
from fedssl.runs.changed_settings import differences_of_flat, flatten
from fedssl.runs.run_folder import CONFIG, RESULTS

Configuration = dict[str, Any]
WHERE = ("run_dir", "ckpt_path", "weights_only", "changed_settings", "show_images")
"""Settings that say where a run writes, what it shows and from where it goes on; ``trainer.logger`` is one too."""


class _ConfigurationOnly(FedSSLCLI):
    """Parses what ``fit`` would and goes no further.

    Args:
        found: Gets the configuration.
    """

    def __init__(self, *args: Any, found: Configuration, **kwargs: Any) -> None:
        self._found = found
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Keeps what ``fit`` would write to ``config.yaml``."""
        self._set_rounds()
        self._dump_config()
        self._found |= self.config_dump

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _set_seed(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def resolve(arguments: list[str]) -> Configuration:
    """The configuration that ``train.py fit`` would save, all defaults included.

    Args:
        arguments: Those of ``fit``.

    Raises:
        ValueError: ``fit`` refuses them.
    """
    found: Configuration = {}
    before = sys.argv[1:]
    try:
        main(["fit", *arguments], partial(_ConfigurationOnly, found=found))
    except SystemExit as stop:
        said = str(stop).removeprefix("error: ").rpartition("\n(")[0] or str(stop).removeprefix("error: ")
        raise ValueError(said) from stop
    finally:
        sys.argv[1:] = before
    return found


def read_configuration(folder: Path) -> Configuration:
    """``config.yaml`` of a run folder.

    Raises:
        ValueError: It is not what a run writes.
    """
    found = yaml.safe_load((folder / CONFIG).read_text())
    if not isinstance(found, dict) or not {"seed_everything", "model", "data"} <= found.keys():
        raise ValueError(f"{folder / CONFIG} is not the configuration of a run")
    return found


def read_results(folder: Path) -> dict[str, Any]:
    """``results.json`` of a folder; empty if there is none.

    Raises:
        ValueError: It is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold the results of a run")
    return found


def holds(folder: Path, wanted: Configuration) -> bool:
    """Whether a folder's run has this configuration, by today's defaults for settings that its file does not know."""
    if comparable(read_configuration(folder)) == comparable(wanted):
        return True
    try:
        return comparable(resolve(["-c", str(folder / CONFIG)])) == comparable(wanted)
    except ValueError:
        return False


def comparable(configuration: Configuration) -> Configuration:
    """What decides the results of a run."""
    kept = copy.deepcopy({key: value for key, value in configuration.items() if key not in WHERE})
    kept.get("trainer", {}).pop("logger", None)
    return kept


def differences(configurations: list[Configuration]) -> dict[str, list[str]]:
    """Settings in which configurations differ, with a text for each configuration; see :func:`differences_of_flat`."""
    return differences_of_flat([flatten(comparable(configuration)) for configuration in configurations])
