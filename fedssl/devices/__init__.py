"""Which devices the clients have, what fits them, and a virtual clock."""

from fedssl.devices.deadline import Deadline
from fedssl.devices.fleet import Delivery, Eligibility, Fleet
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
]
