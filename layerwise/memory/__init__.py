"""Training inside a byte budget: activations are kept, recomputed or compressed, segment by segment."""

from layerwise.memory.codec import WIDTHS
from layerwise.memory.search import ActivationPlan, InfeasibleBudgetError, PlanOutcome, Search
from layerwise.memory.step import Action, Actions, ChangedInPlaceError, PlannedStep, segments

__all__ = [
    "WIDTHS",
    "Action",
    "Actions",
    "ActivationPlan",
    "ChangedInPlaceError",
    "InfeasibleBudgetError",
    "PlanOutcome",
    "PlannedStep",
    "Search",
    "segments",
]
