"""Training inside a byte budget: each activation is kept, recomputed or compressed."""

from layerwise.memory.execution import PlannedStep
from layerwise.memory.graph import StepTrace
from layerwise.memory.plan import Action, MemoryPlan
from layerwise.memory.planning import plan_memory
from layerwise.memory.tracing import trace_step

__all__ = ["Action", "MemoryPlan", "PlannedStep", "StepTrace", "plan_memory", "trace_step"]
