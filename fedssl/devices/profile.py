"""Profile of a client's device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

SECONDS_A_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class DeviceProfile:
    """Device profile with memory, speed, bandwidth, limits and availability; all devices of a class are equal.

    Args:
        name: Name of the device's class, for people.
        memory_bytes: Memory that training may use, in bytes; infinite means no limit.
        macs_per_second: Multiply-accumulates in a second; infinite means that they take no time.
        down_bytes_per_second: Bandwidth from the server; infinite means that the download takes no time.
        up_bytes_per_second: Bandwidth to the server; infinite means that the upload takes no time.
        availability: Probability that the device can be reached, or one for each of equal parts of the day, from
            midnight.
        upload_limit_bytes: Most bytes that the device sends in a round; infinite means no limit.
        macs_limit: Most multiply-accumulates that the device spends in a round; infinite means no limit.

    Raises:
        ValueError: A number is not above zero, or the availability is no probability, or zero all day.
    """

    name: str = "device"
    memory_bytes: float = math.inf
    macs_per_second: float = math.inf
    down_bytes_per_second: float = math.inf
    up_bytes_per_second: float = math.inf
    availability: float | tuple[float, ...] = 1.0
    upload_limit_bytes: float = math.inf
    macs_limit: float = math.inf

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # The limits are the fields that are infinite by default; ``not >`` refuses NaN, too.
            if field.default == math.inf and not value > 0:
                raise ValueError(f"{field.name} of device {self.name!r} must be above 0, got {value}")
        if not all(0 <= p <= 1 for p in self._parts) or not any(self._parts):
            raise ValueError(
                f"availability of device {self.name!r} must be a probability from 0 to 1, or a list of them that are "
                f"not all 0, got {self.availability}"
            )

    @property
    def limited(self) -> bool:
        """True if the device has any limit, of memory, upload or operations."""
        return min(self.memory_bytes, self.upload_limit_bytes, self.macs_limit) < math.inf

    def seconds(self, down_bytes: float, macs: float, up_bytes: float) -> float:
        """Return the duration of a round in seconds: the download, then local training, then the upload."""
        down, up = down_bytes / self.down_bytes_per_second, up_bytes / self.up_bytes_per_second
        return down + macs / self.macs_per_second + up

    def available(self, at_seconds: float) -> float:
        """Return the probability of reaching the device ``at_seconds`` after the midnight on which the run began."""
        part = int(at_seconds % SECONDS_A_DAY * len(self._parts) / SECONDS_A_DAY)
        # Just before midnight the division can round up to the end of the list.
        return self._parts[min(part, len(self._parts) - 1)]

    @property
    def _parts(self) -> tuple[float, ...]:
        return self.availability if isinstance(self.availability, tuple) else (self.availability,)
