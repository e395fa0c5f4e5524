"""What a client's device can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

SECONDS_A_DAY = 24 * 60 * 60
POSITIVE = (
    "memory_bytes",
    "macs_per_second",
    "down_bytes_per_second",
    "up_bytes_per_second",
    "upload_limit_bytes",
    "macs_limit",
)
"""What must be above zero."""


@dataclass(frozen=True)
class DeviceProfile:
    """Memory, speed, bandwidth, limits and availability of one device; two devices of a class are equal.

    Args:
        name: Of its class, for people.
        memory_bytes: What training may use; infinite: no limit.
        macs_per_second: Multiply-accumulates it does in a second; infinite: they take no time.
        down_bytes_per_second: From the server; infinite: takes no time.
        up_bytes_per_second: To the server; infinite: takes no time.
        availability: Probability that it can be reached, or one for each of equal parts of the day, from midnight.
        upload_limit_bytes: Most that it sends in a round; infinite: no limit.
        macs_limit: Most multiply-accumulates that it spends in a round; infinite: no limit.

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
        for field in POSITIVE:
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} of device {self.name!r} must be above 0, got {getattr(self, field)}")
        if not all(0 <= p <= 1 for p in self._parts) or not any(self._parts):
            raise ValueError(
                f"availability of device {self.name!r} must be a probability from 0 to 1, or a list of them that are "
                f"not all 0, got {self.availability}"
            )

    @property
    def limited(self) -> bool:
        """Whether it has any limit, of memory or a round."""
        return min(self.memory_bytes, self.upload_limit_bytes, self.macs_limit) < math.inf

    def seconds(self, down_bytes: float, macs: float, up_bytes: float) -> float:
        """How long a round takes: the download, then local training, then the upload."""
        down, up = down_bytes / self.down_bytes_per_second, up_bytes / self.up_bytes_per_second
        return down + macs / self.macs_per_second + up

    def available(self, at_seconds: float) -> float:
        """Probability that it can be reached ``at_seconds`` after the midnight on which the run began."""
        part = int(at_seconds % SECONDS_A_DAY * len(self._parts) / SECONDS_A_DAY)
        return self._parts[min(part, len(self._parts) - 1)]

    @property
    def _parts(self) -> tuple[float, ...]:
        return self.availability if isinstance(self.availability, tuple) else (self.availability,)
