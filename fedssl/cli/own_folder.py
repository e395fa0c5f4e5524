"""Settings for a folder of the user's own, proposed from its images and added to the arguments.

A configuration that was made for another data set says nothing of these images. So what the proposal sets stands after
the configurations, which it overrides, and before the user's flags, which override it. From there on it is like any
flag: ``config.yaml``, a comparison and further processes have it as a value.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fedssl.data.proposal import Facts, facts_of, propose
from fedssl.runs.changed_settings import flatten

logger = logging.getLogger(__name__)
IMAGES = ("FederatedData", "ImageData")
PATCH = "model.encoder.options.patch_size"


def with_proposal(arguments: list[str]) -> list[str]:
    """Add what the images of ``data.root`` propose, if ``data.dataset`` is ``folder`` and an encoder is to be built.

    Settings in a configuration that names this data set itself are the user's, as flags are.

    Args:
        arguments: Complete arguments of a sub-command.
    """
    after, files = _configurations(arguments)
    sources, flags = [*map(_read, files)], _flags(arguments)
    every = {name: value for settings in (*sources, flags) for name, value in settings.items()}
    meant = [settings for settings in sources if settings.get("data.dataset") == "folder"]
    said = {name: value for settings in (*meant, flags) for name, value in settings.items()}
    kind, encoder = str(every.get("data")).rpartition(".")[2], str(every.get("model.encoder.name", ""))
    if every.get("data.dataset") != "folder" or kind not in IMAGES or not encoder:
        return arguments
    named = any("model.encoder.name" in settings for settings in meant)
    if named or "resnet" in encoder or every.get("model.encoder.weights") or "model.encoder.options" in flags:
        said.setdefault(PATCH, None)  # the user's network, timm's name of it or its weights say which patches it has
    root = Path(str(every.get("data.root", "data"))).expanduser().absolute()
    left = propose(Facts(0, 0, colour=True), said)  # without any, there is no need to look
    facts = facts_of(root) if left else None
    if facts is None:
        return arguments
    proposal = [f"--{name}={value}" for name, value in propose(facts, said).items()]
    _say(f"proposed for {root} ({facts}): {' '.join(proposal)}; what you set wins")
    return [*arguments[:after], *proposal, *arguments[after:]]


@cache
def _say(line: str) -> None:
    """Tell a line once: a comparison parses the arguments of all its runs."""
    logger.warning(line)


def _configurations(arguments: list[str]) -> tuple[int, list[str]]:
    """Return where the arguments after the last configuration begin, and the configurations."""
    after, files = 1, []
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("-c", "--config"):
            files += [value] if equals else arguments[position + 1 : position + 2]
            after = position + (1 if equals else 2)
    return after, files


def _read(file: str) -> dict[str, Any]:
    """Read a configuration by dotted names; empty if it is none, of which the parser will tell."""
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    flat = flatten(settings) if isinstance(settings, dict) else {}
    return {name.replace(".init_args", ""): value for name, value in flat.items() if value != "on"}  # no mere groups


def _flags(arguments: list[str]) -> dict[str, Any]:
    """Return the flags by dotted names, with their values as they were typed."""
    flags = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            flags[name.removeprefix("--").replace(".init_args", "")] = value if equals else following
    return flags
