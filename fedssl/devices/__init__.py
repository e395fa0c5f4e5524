"""Devices of the clients, their limits, and a virtual clock."""

from fedssl.devices.depth import choose_variant, device_extents, fleet_stages
from fedssl.devices.fleet import Deadline, Delivery, Eligibility, Fleet, Shortage, shortage
from fedssl.devices.profile import DeviceProfile
from fedssl.devices.sources import DeviceClasses, DeviceFile, DeviceSource, RandomDevices

__all__ = [
    "Deadline",
    "Delivery",
    "DeviceClasses",
    "DeviceFile",
    "DeviceProfile",
    "DeviceSource",
    "Eligibility",
    "Fleet",
    "RandomDevices",
    "Shortage",
    "choose_variant",
    "device_extents",
    "fleet_stages",
    "shortage",
]
