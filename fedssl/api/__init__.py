"""Classes at the root of ``fedssl``, which imports this module when the first of them is asked for."""

from fedssl.client.bank import ActivationBank
from fedssl.client.start import FedEMA, FedU
from fedssl.data.images import FederatedData, ImageData
from fedssl.data.natural import ByFolder, ByTable
from fedssl.data.partition import IID, Dirichlet, PowerLaw, Shards, WholeClasses
from fedssl.data.texts import FederatedText
from fedssl.devices import Deadline, DeviceClasses, DeviceFile, RandomDevices
from fedssl.protocol.compression import BFloat16, EightBit, TopK
from fedssl.server.aggregation import (
    LDAWA,
    SCAFFOLD,
    Aggregation,
    CoordinateMedian,
    FedDyn,
    FedNova,
    Krum,
    NormWeightedMean,
    PrivateMean,
    StragglerMean,
    TrimmedMean,
    UnchangedMean,
    WeightedMean,
)
from fedssl.server.calibration import Calibration
from fedssl.server.lr_schedule import LRSchedule
from fedssl.server.selection import FedHybridSelector, RandomSelector, RoundRobinSelector, SmartFreezeSelector
from fedssl.server.yogi import Yogi
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import CentralizedSSL
from ssl_methods.alignment import GlobalAlignment, MoonAlignment

__all__ = [
    "IID",
    "LDAWA",
    "SCAFFOLD",
    "ActivationBank",
    "Aggregation",
    "BFloat16",
    "ByFolder",
    "ByTable",
    "Calibration",
    "CentralizedSSL",
    "CoordinateMedian",
    "Deadline",
    "DeviceClasses",
    "DeviceFile",
    "Dirichlet",
    "EightBit",
    "FedDyn",
    "FedEMA",
    "FedHybridSelector",
    "FedNova",
    "FedU",
    "FederatedData",
    "FederatedSSL",
    "FederatedText",
    "GlobalAlignment",
    "ImageData",
    "Krum",
    "LRSchedule",
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
    "TopK",
    "TrimmedMean",
    "UnchangedMean",
    "WeightedMean",
    "WholeClasses",
    "Yogi",
]
