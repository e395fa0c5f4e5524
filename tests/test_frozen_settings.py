"""Settings keep their names: those that users may have written down stand in ``settings.txt``.

``.venv/bin/python tests/test_frozen_settings.py`` writes the list anew. CONTRIBUTING.md says what a name that leaves it
is owed.
"""

import inspect
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from test_project import pyproject

import fedssl.flower.own_images  # noqa: F401  (no command line imports it, but a deployment's configuration names it)
from fedssl.__main__ import main
from fedssl.cli.lightning import FedSSLCLI
from fedssl.cli.names import OWN, PLACES
from fedssl.flower.settings import NODE_KEYS
from fedssl.planning.command import PlanningTrainer

LIST = Path(__file__).parent / "settings.txt"
RENEW = "tests/test_frozen_settings.py says how to renew the list, and CONTRIBUTING.md what a removed setting is owed"


class Heard:
    """Parser that only keeps the names of its arguments."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_argument(self, *names: str, **_: Any) -> None:
        self.names += [name.removeprefix("--") for name in names if name.startswith("--")]


def below(base: type) -> Iterator[type]:
    yield base
    for child in base.__subclasses__():
        yield from below(child)


def of_classes() -> set[str]:
    """Every setting of every class of ours that a configuration can name."""
    classes = {(place, each) for place, bases in PLACES.items() for base in bases for each in below(base)}
    return {
        f"{place}.{setting} of {each.__name__}"
        for place, each in classes
        if each.__module__.partition(".")[0] in OWN and place != "trainer"
        for setting, parameter in inspect.signature(each).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def of_commands() -> set[str]:
    heard, shown = Heard(), set()
    for add in (FedSSLCLI.add_default_arguments_to_parser, FedSSLCLI.add_arguments_to_parser):
        add(None, heard)
    for command in ("compare", "embed"):
        with suppress(SystemExit), redirect_stdout(io.StringIO()) as text:
            main([command, "--help"])
        names = re.findall(r"^ .*?--([a-z][\w.]*)", text.getvalue(), re.MULTILINE)
        shown |= {f"{command} --{name}" for name in names}
    plan = list(inspect.signature(PlanningTrainer.plan).parameters)[3:]
    return shown | {f"plan --{name}" for name in plan} | {f"--{name}" for name in heard.names}


def of_flower() -> set[str]:
    keys = pyproject()["tool"]["flwr"]["app"]["config"]
    return {f"--run-config {key}" for key in keys} | {f"--node-config {key}" for key in NODE_KEYS}


def settings() -> list[str]:
    return sorted(of_classes() | of_commands() | of_flower())


def test_settings_keep_their_names() -> None:
    listed, found = LIST.read_text().splitlines(), settings()
    assert [name for name in listed if name not in found] == [], f"removed: {RENEW}"
    assert [name for name in found if name not in listed] == [], f"new: {RENEW}"
    assert listed == found


if __name__ == "__main__":
    LIST.write_text("".join(f"{name}\n" for name in settings()))
