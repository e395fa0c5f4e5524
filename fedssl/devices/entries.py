"""Device classes as users write them, and the number of clients of each."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedssl.data.partition import apportion
from fedssl.devices.profile import DeviceProfile
from fedssl.utils.units import parse_bytes, parse_rate

SHARE_TOLERANCE = 1e-6
"""Tolerance of the sum of shares around 1, for fractions such as thirds that are written out."""


@dataclass(frozen=True)
class DeviceEntry:
    """Device class with its number of clients.

    Args:
        profile: Abilities of each device of the class.
        count: Number of clients with such a device; ``None`` if a share is given.
        share: Fraction of the clients with such a device.
    """

    profile: DeviceProfile
    count: int | None = None
    share: float | None = None


def parse_entries(entries: Sequence[Mapping[str, Any]]) -> list[DeviceEntry]:
    """Parse device classes.

    Args:
        entries: Device classes, each with any of the keys ``name``, ``memory``, ``macs_per_second``, ``download``,
            ``upload``, ``upload_limit``, ``macs_limit``, ``availability``, and ``count`` or ``share``; an empty value
            is a missing one. Missing values mean no limit, no time, always available and one client.

    Raises:
        ValueError: A key is unknown or a value impossible; some entries have a share and some do not; or shares do not
            add up to 1.
    """
    if not entries:
        raise ValueError("there must be at least one class of devices")
    parsed = [_parse_entry(entry, position) for position, entry in enumerate(entries, start=1)]
    shares = [entry.share for entry in parsed if entry.share is not None]
    if shares and len(shares) < len(parsed):
        raise ValueError("give every class of devices a share, or none: shares and counts do not mix")
    if shares and abs(sum(shares) - 1) > SHARE_TOLERANCE:
        raise ValueError(f"shares of the classes of devices must add up to 1, got {sum(shares):g}")
    return parsed


def assign(entries: Sequence[DeviceEntry], num_clients: int) -> list[DeviceProfile]:
    """Return the device of each client: in order of the entries, the first clients have the first class.

    Shares become counts by largest remainder.

    Raises:
        ValueError: The counts do not add up to the number of clients.
    """
    if entries[0].share is not None:
        shares = np.array([entry.share for entry in entries], dtype=float)
        counts = apportion(shares / shares.sum(), num_clients).tolist()
    else:
        counts = [1 if entry.count is None else entry.count for entry in entries]
    if sum(counts) != num_clients:
        raise ValueError(
            f"the classes of devices count {sum(counts)} clients, but there are {num_clients}: change the counts, or "
            "give shares instead"
        )
    return [entry.profile for entry, count in zip(entries, counts, strict=True) for _ in range(count)]


def parse_availability(value: Any) -> float | tuple[float, ...]:
    """Parse one probability, or several as a list or separated by spaces."""
    parts = value.split() if isinstance(value, str) else value
    if isinstance(parts, list | tuple):
        numbers = tuple(parse_number(part) for part in parts)
        return numbers[0] if len(numbers) == 1 else numbers
    return parse_number(parts)


def parse_number(value: Any) -> float:
    """Parse a number, also from text.

    Raises:
        ValueError: The value is no number.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"a number is needed, got {value!r}")
    return number


def _parse_count(value: Any) -> int:
    number = parse_number(value)
    if number < 1 or number % 1:
        raise ValueError(f"a whole number of at least 1 is needed, got {value!r}")
    return int(number)


def _parse_share(value: Any) -> float:
    number = parse_number(value)
    if not 0 < number <= 1:
        raise ValueError(f"a fraction above 0 and at most 1 is needed, got {value!r}")
    return number


FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("name", str),
    "memory": ("memory_bytes", parse_bytes),
    "macs_per_second": ("macs_per_second", parse_number),
    "download": ("down_bytes_per_second", parse_rate),
    "upload": ("up_bytes_per_second", parse_rate),
    "upload_limit": ("upload_limit_bytes", parse_bytes),
    "macs_limit": ("macs_limit", parse_number),
    "availability": ("availability", parse_availability),
}
NUMBERS: dict[str, Callable[[Any], Any]] = {"count": _parse_count, "share": _parse_share}


def _parse_entry(entry: Mapping[str, Any], position: int) -> DeviceEntry:
    if not isinstance(entry, Mapping):
        raise ValueError(f"class {position} of the devices must have keys and values, got {entry!r}")
    given = {key: value for key, value in entry.items() if value not in (None, "")}
    name = str(given.get("name", f"device {position}"))
    if {"count", "share"} <= given.keys():
        raise ValueError(f"device {name!r} has a count and a share: give one of them")
    fields: dict[str, Any] = {"name": name}
    numbers: dict[str, Any] = {}
    for key, value in given.items():
        try:
            if key in NUMBERS:
                numbers[key] = NUMBERS[key](value)
            else:
                field, parse = FIELDS[_known(key)]
                fields[field] = parse(value)
        except ValueError as error:
            raise ValueError(f"{key} of device {name!r}: {error}") from error
    return DeviceEntry(DeviceProfile(**fields), **numbers)


def _known(key: str) -> str:
    allowed = [*FIELDS, *NUMBERS]
    if key in allowed:
        return key
    near = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
    raise ValueError(f"unknown key{f', did you mean {near[0]!r}?' if near else ''}; allowed: {', '.join(allowed)}")
