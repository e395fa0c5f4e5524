"""Memory that a device can be expected to have, predicted from what it had lately."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

WINDOW = 20
"""Readings that a prediction takes into account."""

SMOOTHING = 0.3
DEVIATIONS = 1.645
MARGIN = 0.1
FEW = 3
CAUTION = 0.8
MAD_TO_DEVIATION = 1.4826
LEVEL = 1.1
UNLIMITED = 2**60
"""Limits from here on are none: version 1 of cgroups writes a huge number."""

# A container sees its own group at the root of the tree; on the machine itself the root has no limit.
GROUP_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and use of a control group, in version 2 and in version 1."""


def predict_budget(readings: Sequence[float]) -> float:
    """Predict the bytes that can be used with some certainty, from readings of available memory in order of time.

    FedHybrid (arXiv 2510.11400) has a memory budget predictor, whose model is not published; this one is **our
    reading**. Of the last 20 readings it takes the exponentially weighted mean (weight 0.3 of the newest), minus 1.645
    robust standard deviations (1.4826 times the median absolute deviation), minus a tenth; never more than the last
    reading, never below 0. Of fewer than three readings it takes 80 % of the last one.

    Raises:
        ValueError: There is no reading, or one is negative.
    """
    if not readings or min(readings) < 0:
        raise ValueError(f"readings of available memory must be at least one and at least 0, got {list(readings)}")
    recent = readings[-WINDOW:]
    if len(recent) < FEW:
        return CAUTION * recent[-1]
    mean = recent[0]
    for reading in recent[1:]:
        mean += SMOOTHING * (reading - mean)
    middle = median(recent)
    deviation = MAD_TO_DEVIATION * median(abs(reading - middle) for reading in recent)
    return min(recent[-1], max(0.0, mean - DEVIATIONS * deviation) * (1 - MARGIN))


def available_memory(root: Path = Path("/")) -> int:
    """Read the bytes left on this Linux machine: MemAvailable, or what its control group leaves if that is less.

    Args:
        root: Root of the file system, with ``proc`` and ``sys``.

    Raises:
        ValueError: There is no ``proc/meminfo`` with MemAvailable: the system is another one.
    """
    free = mem_available(_read(root / "proc/meminfo"))
    if free is None:
        raise ValueError(f"{root / 'proc/meminfo'} does not say how much memory is available: this needs Linux")
    groups = root / "sys/fs/cgroup"
    for limit, usage in GROUP_FILES:
        left = left_of_group(_read(groups / limit), _read(groups / usage))
        free = free if left is None else min(free, left)
    return free


def mem_available(meminfo: str) -> int | None:
    """Parse the bytes of MemAvailable in the text of ``/proc/meminfo``; ``None`` if it is not there."""
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def left_of_group(limit: str, usage: str) -> int | None:
    """Parse the bytes that a control group leaves out of its limit and its use; ``None`` without a limit."""
    limit, usage = limit.strip(), usage.strip()
    if not limit.isdigit() or not usage.isdigit() or int(limit) >= UNLIMITED:
        return None
    return max(0, int(limit) - int(usage))


def _read(path: Path) -> str:
    """Return the text of a file; empty if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


class Availability:
    """Budget that follows the memory that is available from round to round.

    Budgets are rounded down to a power of 1.1, so that a plan lasts until it no longer fits or much more fits.

    Args:
        trace: Bytes available in each round, from the first on again when it ends; ``None`` reads this machine's.
    """

    def __init__(self, trace: Sequence[int] | None) -> None:
        self._trace = trace
        self._readings: dict[int, int] = {}

    def budget(self, round_: int) -> float:
        """Return the bytes that can be used in a round; with a trace, whatever rounds were asked for before."""
        predicted = predict_budget(self._read_until(round_))
        return LEVEL ** math.floor(math.log(predicted, LEVEL)) if predicted >= 1 else 0.0

    def _read_until(self, round_: int) -> list[int]:
        # A trace is read as far back as the window in every round, so that a resumed run has the same budgets.
        if self._trace:
            return [self._trace[each % len(self._trace)] for each in range(max(0, round_ - WINDOW + 1), round_ + 1)]
        # Read once a round: training itself takes memory, and clients of one round shall have one budget.
        if round_ not in self._readings:
            self._readings = dict([*self._readings.items(), (round_, available_memory())][-WINDOW:])
        return list(self._readings.values())
