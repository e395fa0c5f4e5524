"""Turns the command line's long error reports into the one line a user needs."""

from __future__ import annotations

import re
import sys
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from fedssl.aggregation import Aggregation
from fedssl.alignment import Alignment
from fedssl.devices import DeviceSource
from fedssl.partition import Partitioner
from fedssl.selection import Selector
from fedssl.start import StartRule
from layerwise import BlockPerturbation, Scheme
from linear_eval import EvaluatedModule
from ssl_methods import Method, TwoViews

CLASSES: dict[str, type] = {
    "model": EvaluatedModule,
    "method": Method,
    "scheme": Scheme,
    "augment": TwoViews,
    "alignment": Alignment,
    "aggregation": Aggregation,
    "partition": Partitioner,
    "selector": Selector,
    "devices": DeviceSource,
    "start": StartRule,
    "pace": BlockPerturbation,
}
NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value"
    r"|Expected a path but|Problem with given class_path|^Parser key|does not correspond to a subclass of"
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")


class BriefParser(LightningArgumentParser):
    """Prints what was wrong instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with a short message."""
        sys.exit(f"error: {brief(message)}\n(train.py fit --help and --print_config show all settings)")


def brief(message: str) -> str:
    """The lines of a parser's report that say what is wrong, and what is allowed."""
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    lines = [line.strip(" -\t") for line in message.splitlines()]
    telling = [line for line in lines if line and not NOISE.search(line)]
    where = f"{'.'.join(keys)}: " if keys else ""
    unknown = UNKNOWN_CLASS.search(message)
    if unknown and keys:
        allowed = allowed_classes(keys[-1].split(".")[-1])
        return f"{where}unknown class {unknown[1]!r}" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    return where + "; ".join(dict.fromkeys(telling or lines))


def allowed_classes(key: str) -> list[str]:
    """Names of the classes that a setting accepts."""
    base = CLASSES.get(key)
    return sorted(_leaves(base)) if base else []


def root_cause(error: BaseException) -> BaseException:
    """The error behind the parser's wrapping of it.

    Of several classes that a setting may have, the parser's cause is what the first one says, though another was meant.
    """
    while error.__cause__ is not None and NOISE.search(str(error)):
        cause = error.__cause__
        error = ValueError(brief(str(error))) if NOISE.search(str(cause)) and not cause.__cause__ else cause
    return error


def _leaves(base: Any) -> set[str]:
    below = {name for child in base.__subclasses__() for name in _leaves(child)}
    return below or {base.__name__}
