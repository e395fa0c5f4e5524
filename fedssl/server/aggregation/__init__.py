"""Aggregation rules, which make one result of the clients'."""

from fedssl.server.aggregation.feddyn import FedDyn
from fedssl.server.aggregation.fednova import FedNova
from fedssl.server.aggregation.means import LDAWA, NormWeightedMean, StragglerMean, UnchangedMean, WeightedMean
from fedssl.server.aggregation.private_mean import PrivateMean
from fedssl.server.aggregation.robust import CoordinateMedian, Krum, TrimmedMean
from fedssl.server.aggregation.rule import Aggregation, Update
from fedssl.server.aggregation.scaffold import SCAFFOLD

__all__ = [
    "LDAWA",
    "SCAFFOLD",
    "Aggregation",
    "CoordinateMedian",
    "FedDyn",
    "FedNova",
    "Krum",
    "NormWeightedMean",
    "PrivateMean",
    "StragglerMean",
    "TrimmedMean",
    "UnchangedMean",
    "Update",
    "WeightedMean",
]
