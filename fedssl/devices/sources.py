"""Devices of the clients: classes written in the configuration or in a file, or random draws."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from fedssl.data.partition import apportion
from fedssl.devices.profile import DeviceProfile
from fedssl.utils.seeding import numpy_generator
from fedssl.utils.units import as_number, parse_bytes, parse_rate

SHARE_TOLERANCE = 1e-6
"""Tolerance of the sum of shares around 1, for fractions such as thirds that are written out."""

Range = tuple[float, float]


class DeviceSource(ABC):
    """Source of the clients' devices."""

    @abstractmethod
    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Return the devices, in order of client ids.

        Args:
            num_clients: Number of clients of the federation.
            seed: Seed of the run; the same seed gives the same devices.

        Raises:
            ValueError: The source has devices for another number of clients.
        """


class DeviceClasses(DeviceSource):
    """Device classes, written out in the configuration.

    Args:
        classes: Device classes, each with any of ``name``, ``memory`` ("512MiB"), ``macs_per_second``, ``download`` and
            ``upload`` (bytes a second, or "20 Mbit/s"), ``upload_limit`` ("5MiB" a round), ``macs_limit`` (a round),
            ``availability`` (a probability, or a list that splits the day into equal parts), and ``count`` (clients) or
            ``share`` (fraction of the clients). The first clients have the first class.

    Raises:
        ValueError: A key is unknown, a value impossible, or shares do not add up to 1.
    """

    def __init__(self, classes: list[dict[str, Any]]) -> None:
        self._classes = parse_classes(classes)

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Return the clients' devices; nothing is drawn."""
        return assign(self._classes, num_clients)


class DeviceFile(DeviceSource):
    """Device classes from a file.

    Args:
        path: File of the device classes: YAML with a list under ``devices``, or CSV with a heading. Keys and columns
            are those of ``DeviceClasses``. In CSV, spaces separate the parts of the day, and empty cells count as
            missing.

    Raises:
        ValueError: The file does not exist, it is neither YAML nor CSV, or a class is impossible.
    """

    def __init__(self, path: str) -> None:
        try:
            self._classes = parse_classes(_read(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Return the clients' devices; nothing is drawn."""
        return assign(self._classes, num_clients)


class RandomDevices(DeviceSource):
    """Random devices, drawn for each client on its own; a range left out means no limit, or no time.

    Args:
        memory: Lowest and highest memory, such as ["256MiB", "2GiB"].
        macs_per_second: Lowest and highest multiply-accumulates in a second.
        download: Lowest and highest bandwidth from the server, in bytes a second or such as "20 Mbit/s".
        upload: Lowest and highest bandwidth to the server, likewise.
        availability: Lowest and highest probability that a device can be reached; always uniform.
        distribution: Distribution within the ranges: ``uniform``, or ``log-uniform``, where every power of ten is
            equally likely.

    Raises:
        ValueError: A range is not two numbers above zero in ascending order.
    """

    def __init__(
        self,
        memory: list[str] | None = None,
        macs_per_second: list[float] | None = None,
        download: list[float | str] | None = None,
        upload: list[float | str] | None = None,
        availability: list[float] | None = None,
        distribution: Literal["uniform", "log-uniform"] = "log-uniform",
    ) -> None:
        if distribution not in ("uniform", "log-uniform"):
            raise ValueError(f"distribution must be 'uniform' or 'log-uniform', got {distribution!r}")
        self._log = distribution == "log-uniform"
        self._ranges = {
            "memory_bytes": _range("memory", memory, parse_bytes),
            "macs_per_second": _range("macs_per_second", macs_per_second, parse_number),
            "down_bytes_per_second": _range("download", download, parse_rate),
            "up_bytes_per_second": _range("upload", upload, parse_rate),
            "availability": _range("availability", availability, parse_number),
        }
        if (probable := self._ranges["availability"]) and probable[1] > 1:
            raise ValueError(f"availability must be a probability of at most 1, got {availability}")

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Draw the clients' devices; each is independent of the number of clients."""
        generators = (numpy_generator(seed, "device", client) for client in range(num_clients))
        return [self._draw(f"device {client}", rng) for client, rng in enumerate(generators)]

    def _draw(self, name: str, rng: np.random.Generator) -> DeviceProfile:
        drawn: dict[str, Any] = {}
        # A position for every range, used or not: leaving one range out keeps the draws of the others.
        for (field, limits), position in zip(self._ranges.items(), rng.random(len(self._ranges)), strict=True):
            if limits:
                low, high = limits
                log = self._log and field != "availability"
                drawn[field] = float(low * (high / low) ** position if log else low + (high - low) * position)
        if "memory_bytes" in drawn:
            drawn["memory_bytes"] = int(drawn["memory_bytes"])
        return DeviceProfile(name, **drawn)


def _range(name: str, limits: list[Any] | None, parse: Callable[[Any], float]) -> Range | None:
    if limits is None:
        return None
    if len(limits) != 2:
        raise ValueError(f"{name} must be a lowest and a highest value, got {limits}")
    low, high = (parse(limit) for limit in limits)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name} must be two finite numbers above 0 in ascending order, got {limits}")
    return low, high


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError("no such file")
    if path.suffix == ".csv":
        # Spreadsheets put a byte order mark in front, which would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError("a file of devices must end in .yaml, .yml or .csv")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {error}") from error
    if not isinstance(content, dict) or content.keys() != {"devices"} or not isinstance(content["devices"], list):
        raise ValueError("must hold a list under the one key 'devices'")
    return content["devices"]


@dataclass(frozen=True)
class DeviceClass:
    """Device class with its number of clients.

    Args:
        profile: Abilities of each device of the class.
        count: Number of clients with such a device, unless a share is given.
        share: Fraction of the clients with such a device; ``None`` if they are counted.
    """

    profile: DeviceProfile
    count: int = 1
    share: float | None = None


def parse_classes(entries: Sequence[Mapping[str, Any]]) -> list[DeviceClass]:
    """Parse device classes as ``DeviceClasses`` describes them; an empty value is a missing one.

    Raises:
        ValueError: A key is unknown or a value impossible; some classes have a share and some do not; or shares do not
            add up to 1.
    """
    if not entries:
        raise ValueError("there must be at least one class of devices")
    classes = [_parse_class(entry, position) for position, entry in enumerate(entries, start=1)]
    shares = [each.share for each in classes if each.share is not None]
    if shares and len(shares) < len(classes):
        raise ValueError("give every class of devices a share, or none: shares and counts do not mix")
    if shares and abs(sum(shares) - 1) > SHARE_TOLERANCE:
        raise ValueError(f"shares of the classes of devices must add up to 1, got {sum(shares):g}")
    return classes


def assign(classes: Sequence[DeviceClass], num_clients: int) -> list[DeviceProfile]:
    """Return the device of each client: in order of the classes, the first clients have the first class.

    Shares become counts by largest remainder.

    Raises:
        ValueError: The counts do not add up to the number of clients.
    """
    counts = [each.count for each in classes]
    if classes[0].share is not None:
        shares = np.array([each.share for each in classes], dtype=float)
        # Shares add up to 1 only within the tolerance.
        counts = apportion(shares / shares.sum(), num_clients).tolist()
    if sum(counts) != num_clients:
        raise ValueError(
            f"the classes of devices count {sum(counts)} clients, but there are {num_clients}: change the counts, or "
            "give shares instead"
        )
    return [each.profile for each, count in zip(classes, counts, strict=True) for _ in range(count)]


def _parse_class(entry: Mapping[str, Any], position: int) -> DeviceClass:
    if not isinstance(entry, Mapping):
        raise ValueError(f"class {position} of the devices must have keys and values, got {entry!r}")
    given = {key: value for key, value in entry.items() if value not in (None, "")}
    parsed: dict[str, Any] = {"name": f"device {position}"}
    where = f"of device {given.get('name', parsed['name'])!r}"
    for key, value in given.items():
        if key not in KEYS:
            raise ValueError(f"{key} {where}: unknown key; allowed: {', '.join(KEYS)}")
        field, parse = KEYS[key]
        try:
            parsed[field] = parse(value)
        except ValueError as error:
            raise ValueError(f"{key} {where}: {error}") from error
    if {"count", "share"} <= parsed.keys():
        raise ValueError(f"count and share {where}: give one of them")
    numbers = {key: parsed.pop(key) for key in ("count", "share") if key in parsed}
    return DeviceClass(DeviceProfile(**parsed), **numbers)


def parse_number(value: Any, fits: Callable[[float], bool] = lambda number: True, needed: str = "a number") -> float:
    """Parse a number, also from text.

    Raises:
        ValueError: The value is no number, or does not fit; the message says what is ``needed``.
    """
    number = as_number(value)
    if math.isnan(number) or not fits(number):
        raise ValueError(f"{needed} is needed, got {value!r}")
    return number


def _count(value: Any) -> int:
    return int(parse_number(value, lambda number: number >= 1 and number % 1 == 0, "a whole number of at least 1"))


def _share(value: Any) -> float:
    return parse_number(value, lambda number: 0 < number <= 1, "a fraction above 0 and at most 1")


def _availability(value: Any) -> float | tuple[float, ...]:
    """Parse one probability, or several as a list or separated by spaces."""
    parts = value.split() if isinstance(value, str) else value
    numbers = tuple(parse_number(part) for part in (parts if isinstance(parts, list | tuple) else [parts]))
    return numbers[0] if len(numbers) == 1 else numbers


KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("name", str),
    "memory": ("memory_bytes", parse_bytes),
    "macs_per_second": ("macs_per_second", parse_number),
    "download": ("down_bytes_per_second", parse_rate),
    "upload": ("up_bytes_per_second", parse_rate),
    "upload_limit": ("upload_limit_bytes", parse_bytes),
    "macs_limit": ("macs_limit", parse_number),
    "availability": ("availability", _availability),
    "count": ("count", _count),
    "share": ("share", _share),
}
"""Keys of a class as users write it, each with the field of ``DeviceProfile`` (or ``DeviceClass``) and its parser."""
