"""Sources of the clients' devices: a file, written classes, or random draws."""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from fedssl.devices.entries import assign, parse_entries, parse_number
from fedssl.devices.profile import DeviceProfile
from fedssl.utils.seeding import numpy_generator
from fedssl.utils.units import parse_bytes, parse_rate

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
        self._entries = parse_entries(classes)

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Return the clients' devices; nothing is drawn."""
        return assign(self._entries, num_clients)


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
            self._entries = parse_entries(_read(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Return the clients' devices; nothing is drawn."""
        return assign(self._entries, num_clients)


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
        }
        self._availability = _range("availability", availability, parse_number)
        if self._availability and self._availability[1] > 1:
            raise ValueError(f"availability must be a probability of at most 1, got {availability}")

    def profiles(self, num_clients: int, seed: int) -> list[DeviceProfile]:
        """Draw the clients' devices; each is independent of the number of clients."""
        return [
            self._draw(f"device {client}", numpy_generator(seed, "device", client)) for client in range(num_clients)
        ]

    def _draw(self, name: str, rng: np.random.Generator) -> DeviceProfile:
        *positions, last = rng.random(len(self._ranges) + 1)
        fields = zip(self._ranges.items(), positions, strict=True)
        drawn = {field: _between(limits, at, self._log) for (field, limits), at in fields if limits}
        if self._availability:
            drawn["availability"] = _between(self._availability, last, log=False)
        if "memory_bytes" in drawn:
            drawn["memory_bytes"] = int(drawn["memory_bytes"])
        return DeviceProfile(name, **drawn)


def _between(limits: Range, position: float, log: bool) -> float:
    """Return the value at a position in [0, 1) of the range."""
    low, high = limits
    return float(low * (high / low) ** position if log else low + (high - low) * position)


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
