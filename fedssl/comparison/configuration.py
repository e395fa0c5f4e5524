"""Configuration of a run before it starts, and the differences between configurations."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fedssl.cli.command import main
from fedssl.cli.lightning import FedSSLCLI
from fedssl.runs.changed_settings import differences_of_flat, flatten
from fedssl.runs.run_folder import CONFIG

Configuration = dict[str, Any]
WHERE = ("run_dir", "ckpt_path", "weights_only", "changed_settings", "show_images")
"""Settings of output and resume, which change no result; ``trainer.logger`` is one too."""


class _ConfigurationOnly(FedSSLCLI):
    """Command line that parses the arguments of ``fit`` and stops there.

    Args:
        found: Dictionary that receives the configuration.
    """

    def __init__(self, *args: Any, found: Configuration, **kwargs: Any) -> None:
        self._found = found
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Keep the configuration that ``fit`` would write to ``config.yaml``."""
        self._set_rounds()
        self._dump_config()
        self._found |= self.config_dump

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _set_seed(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def resolve(arguments: list[str]) -> Configuration:
    """Parse arguments into the configuration that ``train.py fit`` would save, all defaults included.

    Args:
        arguments: Arguments of ``fit``.

    Raises:
        ValueError: ``fit`` refuses the arguments.
    """
    # LightningCLI parses in its constructor and nowhere else, so a command line that builds nothing has to run.
    # ``main`` overwrites ``sys.argv`` and reports errors by ``SystemExit``, with a hint in brackets on the last line.
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
        return comparable(resolve(["-c", str(folder / CONFIG)])) == comparable(wanted)
    except ValueError:
        return False


def comparable(configuration: Configuration) -> Configuration:
    """Settings that decide the results of a run."""
    kept = copy.deepcopy({key: value for key, value in configuration.items() if key not in WHERE})
    kept.get("trainer", {}).pop("logger", None)
    return kept


def differences(configurations: list[Configuration]) -> dict[str, list[str]]:
    """Settings in which configurations differ, with a text for each configuration; see ``differences_of_flat``."""
    return differences_of_flat([flatten(comparable(configuration)) for configuration in configurations])
