"""Federated self-supervised representation learning for devices with little memory."""

from fedssl.aggregation import (
    LDAWA,
    Aggregation,
    CoordinateMedian,
    Krum,
    NormWeightedMean,
    PrivateMean,
    StragglerMean,
    TrimmedMean,
    UnchangedMean,
    WeightedMean,
)
from fedssl.alignment import GlobalAlignment, MoonAlignment
from fedssl.bank import ActivationBank
from fedssl.calibration import Calibration
from fedssl.centralized import CentralizedSSL
from fedssl.data import FederatedData, ImageData
from fedssl.devices import Deadline, DeviceClasses, DeviceFile, RandomDevices
from fedssl.federated import FederatedSSL
from fedssl.partition import IID, Dirichlet, PowerLaw, Shards, WholeClasses
from fedssl.selection import FedHybridSelector, RandomSelector, RoundRobinSelector, SmartFreezeSelector
from fedssl.start import FedEMA, FedU
from fedssl.text_data import FederatedText

__all__ = [
    "IID",
    "LDAWA",
    "ActivationBank",
    "Aggregation",
    "Calibration",
    "CentralizedSSL",
    "CoordinateMedian",
    "Deadline",
    "DeviceClasses",
    "DeviceFile",
    "Dirichlet",
    "FedEMA",
    "FedHybridSelector",
    "FedU",
    "FederatedData",
    "FederatedSSL",
    "FederatedText",
    "GlobalAlignment",
    "ImageData",
    "Krum",
    "MoonAlignment",
    "NormWeightedMean",
    "PowerLaw",
    "PrivateMean",
    "RandomDevices",
    "RandomSelector",
    "RoundRobinSelector",
    "Shards",
    "SmartFreezeSelector",
    "StragglerMean",
    "TrimmedMean",
    "UnchangedMean",
    "WeightedMean",
    "WholeClasses",
]
