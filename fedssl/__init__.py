"""Federated self-supervised representation learning for devices with little memory."""

from fedssl.aggregation import Aggregation, WeightedMean
from fedssl.alignment import GlobalAlignment, MoonAlignment
from fedssl.calibration import Calibration
from fedssl.centralized import CentralizedSSL
from fedssl.data import FederatedData, ImageData
from fedssl.federated import FederatedSSL
from fedssl.partition import IID, Dirichlet, PowerLaw, Shards

__all__ = [
    "IID",
    "Aggregation",
    "Calibration",
    "CentralizedSSL",
    "Dirichlet",
    "FederatedData",
    "FederatedSSL",
    "GlobalAlignment",
    "ImageData",
    "MoonAlignment",
    "PowerLaw",
    "Shards",
    "WeightedMean",
]
