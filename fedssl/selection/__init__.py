"""Who takes part in a round: selectors over the clients that can."""

from fedssl.selection.fedhybrid import FedHybridSelector
from fedssl.selection.random_selector import RandomSelector
from fedssl.selection.round_robin import RoundRobinSelector
from fedssl.selection.selector import Candidate, Outcome, Selector
from fedssl.selection.smartfreeze import SmartFreezeSelector

__all__ = [
    "Candidate",
    "FedHybridSelector",
    "Outcome",
    "RandomSelector",
    "RoundRobinSelector",
    "Selector",
    "SmartFreezeSelector",
]
