"""Consent of a node's operator: what a run may do on this machine, whatever its server asks for."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from fedssl.data.disclosure import PATHS
from fedssl.flower.records import WITHHOLDABLE

KEYS = ("recipes", "classes", "settings", "at-most", "minutes", "rounds-a-day", "withhold")
DATA_SETS = ("data.init_args.root", "data.init_args.eval_root")
SCALARS = (str, int, float, bool, type(None))


class ConsentError(ValueError):
    """The operator of this node does not allow what a run asks for."""


@dataclass(frozen=True)
class Consent:
    """Limits that an operator sets; without a file there is none.

    Args:
        recipes: SHA-256 of the recipes that are approved; ``None`` approves all.
        classes: Patterns of the classes that a recipe may name, such as ``ssl_methods.*``; ``None`` allows all that
            the parser does.
        settings: Allowed values of settings, by dotted key as on the command line.
        at_most: Largest values of settings, likewise.
        minutes: Time limit of a local update; 0 sets none.
        rounds_a_day: Rounds trained from midnight to midnight (UTC); 0 sets no limit.
        withhold: Figures that results must not have, of ``WITHHOLDABLE``.
        path: File that says so, for messages; ``None`` if there is none.

    Raises:
        ValueError: A limit is no limit, or withheld counts could be told from the operations.
    """

    recipes: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    settings: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    at_most: tuple[tuple[str, float], ...] = ()
    minutes: float = 0
    rounds_a_day: int = 0
    withhold: tuple[str, ...] = ()
    path: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("minutes", self.minutes), ("rounds-a-day", self.rounds_a_day)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{self.path}: {name} must be a number from 0, got {value!r}")
        for key, limit in self.at_most:
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise ValueError(f"{self.path}: at-most {key} must be a number, got {limit!r}")
        for figure in self.withhold:
            if figure not in WITHHOLDABLE:
                raise ValueError(f"{self.path}: withhold {figure!r}: allowed are {', '.join(WITHHOLDABLE)}")
        if "counts" in self.withhold and "operations" not in self.withhold:
            raise ValueError(f"{self.path}: operations grow with the images: withhold operations beside counts")

    def check_recipe(self, content: str, kept: Path) -> None:
        """Refuse a recipe that is not on the list of approved ones.

        Args:
            content: Content hash of the recipe.
            kept: File with the recipe's text, for the operator to read.

        Raises:
            ConsentError: It is not.
        """
        if self.recipes is not None and content not in self.recipes:
            raise ConsentError(
                f"the recipe {content} is not approved: read {kept}, and to allow it, add its hash to recipes in "
                f"{self.path}"
            )

    def check_settings(self, recipe: Mapping[str, Any], data_root: str | None) -> None:
        """Refuse classes, settings and paths that the operator does not allow.

        Args:
            recipe: Parsed recipe, all defaults included.
            data_root: Folder that paths of the recipe must lie in; ``None`` if it must name none, but for those of
                data sets, as a node without this folder loads none.

        Raises:
            ConsentError: There is one; the message names it.
        """
        if self.path is None:
            return
        for key, name in _classes(recipe):
            if self.classes is not None and not any(fnmatchcase(name, pattern) for pattern in self.classes):
                raise ConsentError(f"the recipe names the class {name} at {key}: {self.path} allows {self.classes}")
        for key, allowed in self.settings:
            # As text too, so that 1 and True, which are equal in Python, are told apart.
            if repr(_setting(recipe, key)) not in map(repr, allowed):
                raise ConsentError(f"{key} is {_setting(recipe, key)!r}: {self.path} allows {list(allowed)}")
        for key, limit in self.at_most:
            value = _setting(recipe, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value <= limit:
                raise ConsentError(f"{key} is {value!r}: {self.path} allows at most {limit}")
        for key, value in _paths(recipe):
            if data_root is None and key in DATA_SETS:
                continue
            if data_root is None or not Path(value).resolve().is_relative_to(Path(data_root).resolve()):
                raise ConsentError(f"the recipe names the path {value} at {key}, which is not in this node's data-root")

    def check_rounds(self, today: int) -> None:
        """Refuse a round beyond the day's limit.

        Raises:
            ConsentError: So many rounds were trained today.
        """
        if self.rounds_a_day and today >= self.rounds_a_day:
            raise ConsentError(f"{today} rounds were trained today: {self.path} allows {self.rounds_a_day} a day")


def read_consent(path: str | None) -> Consent:
    """Read an operator's file; no path gives the consent without limits.

    Raises:
        OSError: There is no such file.
        ValueError: It has an unknown key, or a value that is no limit.
    """
    if path is None:
        return Consent()
    found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold keys and values; the keys are {', '.join(KEYS)}")
    unknown = [str(key) for key in found if key not in KEYS]
    if unknown:
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; allowed are {', '.join(KEYS)}")
    # Checked by the constructor; ``Any`` as a file may hold anything.
    given: dict[str, Any] = {
        key: _texts(path, key, found[key]) for key in ("recipes", "classes", "withhold") if key in found
    }
    tables = {key: _table(path, key, found.get(key, {})) for key in ("settings", "at-most")}
    settings = tuple((key, tuple(v) if isinstance(v, list) else (v,)) for key, v in tables["settings"].items())
    if not all(isinstance(value, SCALARS) for _, allowed in settings for value in allowed):
        raise ValueError(f"{path}: settings must be values or lists of values, got {tables['settings']}")
    given |= {key.replace("-", "_"): found[key] for key in ("minutes", "rounds-a-day") if key in found}
    return Consent(**given, settings=settings, at_most=tuple(tables["at-most"].items()), path=path)


def content_hash(text: str) -> str:
    """SHA-256 of a recipe's text, as ``sha256sum`` prints it for the file."""
    return sha256(text.encode()).hexdigest()


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """End what takes too long; 0 sets no limit. Works in the main thread only, where Flower runs a ClientApp.

    Raises:
        ConsentError: The time is over.
    """

    def end(*_: object) -> None:
        raise ConsentError(f"the local update takes longer than the {minutes:g} minutes that are allowed")

    if not minutes:
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _texts(path: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{path}: {key} must be a list of texts, got {value!r}")
    return tuple(value)


def _table(path: str, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{path}: {key} must be a table of settings, got {value!r}")
    return value


def _setting(recipe: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, in which ``init_args`` is left out."""
    value: Any = recipe
    for part in key.split("."):
        value = value.get("init_args", value) if isinstance(value, Mapping) else {}
        if part not in value:
            raise ConsentError(f"the recipe has no {key}, which the operator's file limits")
        value = value[part]
    return value


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested settings."""
    pairs: Collection[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        yield key, value
    for name, each in pairs:
        yield from _leaves(each, f"{key}.{name}".lstrip("."))


def _classes(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((key, str(value)) for key, value in _leaves(recipe) if key.rpartition(".")[2] == "class_path")


def _paths(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in _leaves(recipe):
        named = key.rpartition(".")[2] in PATHS
        if isinstance(value, str | Path) and (named or Path(value).is_absolute() or ".." in Path(value).parts):
            yield key, str(value)
