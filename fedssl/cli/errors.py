"""Error messages: the parser's long reports, reduced to the one line that a user needs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from fedssl.cli.arguments import UsageError
from fedssl.cli.names import OWN, REMOVED, allowed_classes, imported, similar_settings

NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value"
    r"|Expected a path but|Problem with given class_path|^Parser key|does not correspond to a subclass of"
)
MISFIT = (AttributeError, LookupError, TypeError)
"""Errors that a class raises when a setting has a type that it does not expect."""

KEY = re.compile(r'Parser key "([\w.]+)"')
FORBIDDEN = re.compile(r"Importing '(\S+)' is not allowed")
UNKNOWN_OPTION = re.compile(r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)|has no attribute '(\w+)'.* Got value: (\S+)")
OTHER_TYPE = re.compile(r"Expected '(\S+)' to be a (?:subclass of|function that returns) <class '([\w.]+)'>")
OTHER_CLASS = re.compile(r"does not correspond to a subclass of (\w+)")
EXPECTED = re.compile(r"Expected a <class '(\w+)'>")
GIVEN = re.compile(r"(?:Given value|Got value): (.*)")
LONG = 200
NO_MAPPING = re.compile(r"'\w+' object has no attribute 'keys'")
PLAIN = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
PLAIN |= {"list": "a list", "tuple": "a list", "dict": "a mapping"}


class BriefParser(LightningArgumentParser):
    """Parser that tells the error instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments with a short message."""
        raise UsageError(one_line(brief(message)), "train.py fit --help and --print_config show all settings") from ex


def brief(message: str) -> str:
    """Reduce a parser's report to the setting, the error and the allowed values."""
    keys = KEY.findall(message)
    where = f"{'.'.join(keys)}: " if keys else ""
    known = _known(message, keys[-1].rpartition(".")[2] if keys else "")
    return where + (known or "; ".join(dict.fromkeys(_telling(message) or _lines(message))))


def _known(message: str, key: str) -> str:
    """Message for a report of a known kind; empty for others."""
    if found := FORBIDDEN.search(message):
        return (
            f"{found[1]} is not allowed: a configuration can name classes of {', '.join(OWN)}, of their dependencies, "
            "and of your own files beside train.py, in the working folder or on PYTHONPATH"
        )
    if found := UNKNOWN_OPTION.search(message):
        name = found[1] or found[2]
        if (word := name.rpartition(".")[2]) in REMOVED:
            return f"{name!r} was removed: {REMOVED[word]}"
        near = similar_settings(word)
        return f"{name!r} is not accepted" + (f"; did you mean {', or '.join(near)}?" if near else "")
    allowed = allowed_classes(key)
    choice = f"; allowed: {', '.join(allowed)}" if allowed else ""
    if found := OTHER_TYPE.search(message):
        return f"{found[1]} is no {found[2].rpartition('.')[2]}{choice}"
    if NO_MAPPING.search(message):
        return "expected a mapping of settings"
    given = GIVEN.search(message)
    if given and given[1] in REMOVED:
        return f"{given[1]!r} was removed: {REMOVED[given[1]]}"
    # The parser tries each allowed class and reports all failures. If the named class has rejected its own settings,
    # its message tells more than the type mismatch of the others.
    if (found := OTHER_CLASS.search(message)) and not _telling(message):
        return f"{given[1] if given else 'this'} is no {found[1]}{choice}"
    expected = allowed + [PLAIN[name] for name in dict.fromkeys(EXPECTED.findall(message)) if name in PLAIN]
    if given and expected:
        return f"expected {' or '.join(expected)}, got {shorten(given[1])!r}"
    found = UNKNOWN_CLASS.search(message)
    return f"unknown class {found[1] or found[3]!r}{choice}" if found else ""


def shorten(text: str, length: int = 60) -> str:
    """Cut a text that is too long for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def one_line(text: str) -> str:
    """Join the lines of a message and shorten its overlong words."""
    return " ".join(shorten(word) if len(word) > LONG else word for word in text.split())


def _telling(message: str) -> list[str]:
    return [line for line in _lines(message) if line and not NOISE.search(line)]


def _lines(message: str) -> list[str]:
    return [line.strip(" -\t") for line in message.splitlines()]


def root_cause(error: BaseException) -> BaseException:
    """Unwrap an error that the parser has wrapped.

    If a setting accepts several classes, the parser gives the error of the first class as the cause, though the user
    may have meant another one. The full message is then reduced instead.
    """
    while error.__cause__ is not None and NOISE.search(str(error)):
        cause = error.__cause__
        error = ValueError(brief(str(error))) if NOISE.search(str(cause)) and not cause.__cause__ else cause
    return misfit(error, None) if isinstance(error, MISFIT) else error


@contextmanager
def blame_settings(config: Any = None) -> Iterator[None]:
    """Convert errors that a setting of the wrong type causes, in the parser or a constructor, to a ``ValueError``.

    Args:
        config: Configuration that the classes are built from; gives the key of the class at fault.

    Raises:
        ValueError: A setting has the wrong type.
    """
    try:
        yield
    except MISFIT as error:
        raise misfit(error, config) from error


def misfit(error: BaseException, config: Any) -> ValueError:
    """Name the class whose constructor failed, the innermost on the traceback, and the reason."""
    keys = {path.rpartition(".")[2]: key for key, path in _class_paths(config)}
    # A traceback runs from the outermost frame inwards, so the last constructor found is the innermost.
    where, step = "", error.__traceback__
    while step:
        made = type(step.tb_frame.f_locals.get("self"))
        if step.tb_frame.f_code.co_name in ("__init__", "__post_init__") and made.__module__.partition(".")[0] in OWN:
            name = "trainer" if issubclass(made, Trainer) else keys.get(made.__name__, made.__name__)
            where = f"{name.replace('.init_args', '')}: "
        step = step.tb_next
    return ValueError(f"{where}a setting is of the wrong kind: {error}")


def check_nulls(config: Any) -> None:
    """Refuse null for settings that have no meaning for it; the parser accepts null everywhere.

    Args:
        config: Configuration of a sub-command, whose classes the parser has already imported.

    Raises:
        ValueError: A setting is null, but neither its default nor its type allows that.
    """
    classes = {key: imported(path) for key, path in _class_paths(config)} | {"trainer": Trainer}
    for place, made in classes.items():
        settings = config[place].get("init_args", config[place])
        if not isinstance(made, type) or not isinstance(settings, Namespace):
            continue
        parameters = {p.name: p for base in reversed(made.__mro__) for p in _own(base)}
        for name in (name for name, value in vars(settings).items() if value is None and name in parameters):
            if parameters[name].default is not None and "None" not in str(parameters[name].annotation):
                place = place.replace(".init_args", "")
                raise ValueError(f"{place}.{name} must not be null: leave it out for its default")


def _own(each: type) -> list[inspect.Parameter]:
    own = vars(each).get("__init__")
    return list(inspect.signature(own).parameters.values()) if inspect.isfunction(own) else []


def _class_paths(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and path of every class in a configuration."""
    for key, value in vars(config).items() if isinstance(config, Namespace) else ():
        if key == "class_path" and isinstance(value, str):
            yield prefix, value
        yield from _class_paths(value, f"{prefix}.{key}".lstrip("."))
