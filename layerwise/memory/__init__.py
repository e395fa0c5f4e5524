"""Training inside a byte budget: each activation is kept, recomputed or compressed."""

from layerwise.memory.allocation import WIDTHS
from layerwise.memory.execution import PlannedStep
from layerwise.memory.graph import StepTrace
from layerwise.memory.layout import CHUNK
from layerwise.memory.nominal import with_nominal_times
from layerwise.memory.plan import Action, MemoryPlan
from layerwise.memory.planning import InfeasibleBudgetError, compress_evenly, plan_memory, transfer_plan
from layerwise.memory.tracing import trace_step

__all__ = [
    "CHUNK",
    "WIDTHS",
    "Action",
    "InfeasibleBudgetError",
    "MemoryPlan",
    "PlannedStep",
    "StepTrace",
    "compress_evenly",
    "plan_memory",
    "trace_step",
    "transfer_plan",
    "with_nominal_times",
]
