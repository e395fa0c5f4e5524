"""Configurations as flat tables of dotted names, and in what several of them differ."""

from __future__ import annotations

import json
from typing import Any

ABSENT = object()


def flatten(configuration: dict[str, Any]) -> dict[str, Any]:
    """Dotted names and values as on the command line: a class is its name, its arguments stand below it."""
    flat: dict[str, Any] = {}
    _flatten("", configuration, flat)
    return flat


def differences_of_flat(flats: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Settings in which flat configurations differ, with a text for each of them.

    Arguments of a class are compared among those that have the class; for the others the text is empty.
    """
    found: dict[str, list[str]] = {}
    for key in sorted({key for flat in flats for key in flat}):
        values = [flat.get(key, ABSENT) for flat in flats]
        known = [value for value in values if value is not ABSENT]
        below = any(key.startswith(f"{other}.") for other in found)
        if any(value != known[0] for value in known) or (len(known) < len(values) and not below):
            found[key] = ["" if value is ABSENT else _text(value) for value in values]
    return found


def _flatten(prefix: str, value: Any, flat: dict[str, Any]) -> None:
    if not isinstance(value, dict) or not value:
        flat[prefix] = value
        return
    if "class_path" in value:
        flat[prefix] = value["class_path"].rpartition(".")[2]
        value = value.get("init_args", {})
    elif prefix:
        flat[prefix] = "on"
    for key, below in value.items():
        _flatten(f"{prefix}.{key}" if prefix else key, below, flat)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
