"""Aggregation rules: how the clients' results become one."""

from fedssl.aggregation.coordinate_median import CoordinateMedian
from fedssl.aggregation.krum import Krum
from fedssl.aggregation.ldawa import LDAWA
from fedssl.aggregation.norm_weighted_mean import NormWeightedMean
from fedssl.aggregation.private_mean import PrivateMean
from fedssl.aggregation.rule import Aggregation
from fedssl.aggregation.straggler_mean import StragglerMean
from fedssl.aggregation.trimmed_mean import TrimmedMean
from fedssl.aggregation.unchanged_mean import UnchangedMean
from fedssl.aggregation.weighted_mean import WeightedMean

__all__ = [
    "LDAWA",
    "Aggregation",
    "CoordinateMedian",
    "Krum",
    "NormWeightedMean",
    "PrivateMean",
    "StragglerMean",
    "TrimmedMean",
    "UnchangedMean",
    "WeightedMean",
]
