"""Arguments as the user types them, completed before the parser sees them."""

from __future__ import annotations

import re
from pathlib import Path

from fedssl.cli.own_folder import with_proposal

_PLACES = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
SHIPPED = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
"""The project's configurations: in the package where it is installed, beside it in a checkout."""

CONFIG_FOLDERS = (Path(), Path("configs"), SHIPPED)
SUBCOMMANDS = ("fit", "validate", "test", "plan")
COMPARE = "compare"


class UsageError(SystemExit):
    """End of the program because its arguments cannot be parsed.

    It is no ``Exception``: the parser, which tries several classes for a setting, would take one for a failed trial.

    Args:
        reason: Error in one line.
        hint: Where the user finds what is accepted; empty if the reason says so.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"error: {reason}" + (f"\n({hint})" if hint else ""))
        self.reason = reason


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Complete bare configuration names, flags and what a folder of images proposes.

    Raises:
        UsageError: A configuration precedes the sub-command, where LightningCLI would ignore it, or a file does not
            exist.
    """
    prepared: list[str] = []
    after_flag = False
    for argument in _complete_flags(arguments):
        flag, _, value = argument.partition("=")
        is_config = flag in ("-c", "--config")
        if is_config and not any(name in prepared for name in (*SUBCOMMANDS, COMPARE)):
            raise UsageError(f"{argument} must follow the sub-command: train.py fit -c FILE")
        if after_flag:
            argument = str(find_config(argument))
        elif is_config and value:
            argument = f"{flag}={find_config(value)}"
        after_flag = is_config and not value
        prepared.append(argument)
    return with_proposal(prepared)


def _complete_flags(arguments: list[str]) -> list[str]:
    """Rewrite flags into the form that the parser accepts.

    A bare ``--json`` becomes ``--json=true``, and ``--device-profile`` gets its underscore. A value that begins with a
    minus is joined to its flag: argparse may take it for a flag of its own, and the error would miss the point.
    """
    completed: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag, equals, value = argument.partition("=")
        if flag == "--json" and not equals and following.startswith("-"):
            argument = "--json=true"
        elif flag == "--device-profile":
            argument = f"--device_profile{equals}{value}"
        if re.match(r"-\d", argument) and completed and completed[-1].startswith("--"):
            completed[-1] += f"={argument}"
        else:
            completed.append(argument)
    return completed


def find_config(name: str) -> Path:
    """Find a configuration file: as given, in ``configs/`` here, or among the project's.

    Raises:
        UsageError: No file has this name.
    """
    for folder in CONFIG_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    known = sorted(path.name for path in SHIPPED.glob("*.yaml"))
    raise UsageError(f"no configuration {name!r}, neither here nor in configs/: there are {', '.join(known)}")


def run_name(arguments: list[str]) -> str:
    """Name of the configuration: the stem of the last YAML file among the arguments, or ``run``."""
    files = [argument for argument in arguments if argument.endswith((".yaml", ".yml"))]
    return Path(files[-1].partition("=")[2] or files[-1]).stem if files else "run"
