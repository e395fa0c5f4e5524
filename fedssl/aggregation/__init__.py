"""Aggregation rules: how the clients' results become one."""

from fedssl.aggregation.ldawa import LDAWA
from fedssl.aggregation.rule import Aggregation
from fedssl.aggregation.straggler_mean import StragglerMean
from fedssl.aggregation.weighted_mean import WeightedMean

__all__ = ["LDAWA", "Aggregation", "StragglerMean", "WeightedMean"]
