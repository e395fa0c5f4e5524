"""Configurations of runs, and the differences between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedssl.cli.command import parse
from fedssl.runs.changed_settings import differences_of_flat, flatten
from fedssl.runs.run_folder import CONFIG

Configuration = dict[str, Any]
WHERE = ("run_dir", "ckpt_path", "weights_only", "changed_settings", "show_images")
"""Settings of output and resume, which change no result; ``trainer.logger`` is one too."""


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
    """Settings that decide the results of a run."""
    trainer = {key: value for key, value in configuration.get("trainer", {}).items() if key != "logger"}
    return {key: value for key, value in configuration.items() if key not in WHERE} | {"trainer": trainer}


def differences(configurations: list[Configuration]) -> dict[str, list[str]]:
    """Settings in which configurations differ, with a text for each configuration; see ``differences_of_flat``."""
    return differences_of_flat([flatten(comparable(configuration)) for configuration in configurations])
