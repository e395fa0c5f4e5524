"""A plan worked out for execution: recipes, and how often each copy is used."""

from __future__ import annotations

from dataclasses import dataclass

from layerwise.memory.graph import StepTrace
from layerwise.memory.plan import Action, MemoryPlan
from layerwise.memory.recipe import Recipe, find_recipe
from layerwise.memory.simulation import dropped_by, units_of
from layerwise.memory.timeline import timeline_of


@dataclass(frozen=True)
class Schedule:
    """What a step has to do.

    Args:
        actions: Action of each value that is not kept.
        recipes: How each unit of recomputed values is rebuilt, and how often.
        counts: How many unpackings each copy of a value serves.
    """

    actions: dict[int, Action]
    recipes: list[tuple[Recipe, int]]
    counts: dict[int, list[int]]


def schedule_of(plan: MemoryPlan, trace: StepTrace) -> Schedule:
    """Works a plan out.

    Raises:
        ValueError: The plan belongs to another graph, or asks for what cannot be done in this one.
    """
    if plan.graph != trace.graph:
        raise ValueError(f"the plan is for graph {plan.graph}, this step's graph is {trace.graph}: make a new plan")
    unknown = plan.actions.keys() - trace.saved.keys()
    if unknown:
        raise ValueError(f"the plan names values that the step does not save: {sorted(unknown)}")
    timeline, resident = timeline_of(trace), trace.saved.keys() - dropped_by(plan.actions)
    counts = {value: [use.count for use in uses] for value, uses in timeline.uses.items()}
    recipes = []
    for unit in units_of(plan.actions, timeline):
        recipe = find_recipe(trace, unit.targets, resident)
        if recipe is None:
            raise ValueError(f"the plan drops values {sorted(unit.targets)}, which cannot be rebuilt")
        recipes.append((recipe, len(unit.rebuilds)))
        counts |= {value: [sum(counts[value])] for value in unit.targets if plan.actions[value].segment}
    return Schedule(plan.actions, recipes, counts)
