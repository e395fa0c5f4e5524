"""What a device lacks for a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedssl.devices.profile import DeviceProfile
from fedssl.units import format_bytes

if TYPE_CHECKING:
    from fedssl.planning.forecast import Need


@dataclass(frozen=True, order=True)
class Shortage:
    """By how much a round exceeds the limits of a device; 0 where it does not.

    Args:
        memory_bytes: Of the peak of a local step.
        upload_bytes: Of what it sends in a round.
        macs: Multiply-accumulates of local training in a round.
    """

    memory_bytes: float
    upload_bytes: float
    macs: float

    def __bool__(self) -> bool:
        return bool(self.memory_bytes or self.upload_bytes or self.macs)

    def __str__(self) -> str:
        lacking = [format_bytes(self.memory_bytes)] if self.memory_bytes else []
        lacking += [f"{format_bytes(self.upload_bytes)} of upload a round"] if self.upload_bytes else []
        lacking += [f"{self.macs:,.0f} multiply-accumulates a round"] if self.macs else []
        return " and ".join(lacking) or "nothing"


def shortage(need: Need, profile: DeviceProfile) -> Shortage:
    """What a device lacks for what a round needs."""
    return Shortage(
        max(0, need.peak_memory_bytes - profile.memory_bytes),
        max(0, need.active_bytes - profile.upload_limit_bytes),
        max(0, need.macs - profile.macs_limit),
    )
