"""Training inside a byte budget: activations are kept, recomputed or compressed, segment by segment."""

from layerwise.memory.codec import WIDTHS
from layerwise.memory.search import InfeasibleBudgetError, Outcome, Plan, Search
from layerwise.memory.step import Action, Actions, ChangedInPlaceError, PlannedStep, segments

__all__ = [
    "WIDTHS",
    "Action",
    "Actions",
    "ChangedInPlaceError",
    "InfeasibleBudgetError",
    "Outcome",
    "Plan",
    "PlannedStep",
    "Search",
    "segments",
]
