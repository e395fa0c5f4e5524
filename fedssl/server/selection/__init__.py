"""Selectors: choose the participants of a round among the clients that can take part."""

from fedssl.server.selection.fedhybrid import FedHybridSelector
from fedssl.server.selection.selector import Candidate, Outcome, RandomSelector, RoundRobinSelector, Selector
from fedssl.server.selection.smartfreeze import SmartFreezeSelector

__all__ = [
    "Candidate",
    "FedHybridSelector",
    "Outcome",
    "RandomSelector",
    "RoundRobinSelector",
    "Selector",
    "SmartFreezeSelector",
]
