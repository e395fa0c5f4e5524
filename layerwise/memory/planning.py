"""Makes a plan for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from layerwise.memory.allocation import WIDTHS
from layerwise.memory.graph import StepTrace
from layerwise.memory.plan import Kind, MemoryPlan
from layerwise.memory.search import Search, State
from layerwise.memory.simulation import Simulation

SPACING = 0.94
"""Ratio of neighbouring levels, from the unplanned peak down, at which plans are cleaned up."""


class InfeasibleBudgetError(ValueError):
    """No plan that was found meets the budget.

    Args:
        message: For the user.
        floor_bytes: Lowest peak that was reached.
    """

    def __init__(self, message: str, floor_bytes: int) -> None:
        super().__init__(message)
        self.floor_bytes = floor_bytes


def plan_memory(
    trace: StepTrace,
    budget_bytes: int,
    actions: Sequence[Kind] = ("recompute", "compress"),
    bits: Sequence[int] = WIDTHS,
) -> MemoryPlan:
    """The fastest plan found that keeps a step's saved activations within a budget.

    The greedy rule is our reading of FedHybrid (arXiv 2510.11400), whose graph optimizer chooses recomputation or
    compression for each tensor so that the delay is least, but whose metric and order are not published: as long
    as the simulated peak is too high, the move is made that frees most bytes at the worst moment per second. Then
    moves that are not needed are undone. A width is used only where the wider ones cannot meet the budget. As long
    as the narrowest width is the same, a larger budget never gives a slower plan, because plans for smaller budgets
    are considered too.

    Args:
        trace: Of the step at its real batch size.
        budget_bytes: See :class:`MemoryPlan` for what counts.
        actions: What may be done; ``("recompute",)`` leaves gradients as they are, bit for bit.
        bits: Widths to which activations may be compressed; one width gives uniform compression.

    Raises:
        InfeasibleBudgetError: The budget cannot be reached.
        ValueError: The budget is not positive, or an action or a width is unknown.
    """
    _check(budget_bytes, actions, bits)
    floor = trace.saved_bytes
    for widths in _tiers(actions, bits):
        search = Search(trace, "recompute" in actions, widths)
        walks = [search.walk(search.start()), *_simpler_walks(trace, search, actions, widths)]
        floor = min(states[-1].peak for states in walks)
        if floor <= budget_bytes:
            best = _best(search, walks, budget_bytes)
            return MemoryPlan(trace.graph, budget_bytes, best.peak, best.seconds, dict(best.actions))
    raise InfeasibleBudgetError(
        f"budget of {budget_bytes} bytes cannot be met: with {' and '.join(actions) or 'no actions'} the step needs "
        f"at least {floor} bytes, and {trace.saved_bytes} bytes without a plan",
        floor,
    )


def compress_evenly(trace: StepTrace, bits: int) -> MemoryPlan:
    """The plan that keeps activations in one width wherever that lowers the peak, and recomputes nothing.

    Its budget is the peak that it reaches.

    Args:
        trace: Of the step at its real batch size.
        bits: The width.

    Raises:
        ValueError: There is no such width.
    """
    _check(1, ("compress",), (bits,))
    search = Search(trace, False, (bits,))
    least = search.walk(search.start())[-1]
    return MemoryPlan(trace.graph, least.peak, least.peak, least.seconds, dict(least.actions))


def transfer_plan(plan: MemoryPlan, source: StepTrace, target: StepTrace) -> MemoryPlan | None:
    """The same actions for the same step at another batch size; no search is needed.

    Args:
        plan: The plan.
        source: The trace that it belongs to.
        target: The other trace.

    Returns:
        ``None`` if the operations differ or the plan's budget does not hold.

    Raises:
        ValueError: The plan does not belong to ``source``.
    """
    if plan.graph != source.graph:
        raise ValueError(f"the plan is for graph {plan.graph}, the source is {source.graph}")
    alike = [op.func for op in source.ops] == [op.func for op in target.ops]
    if not alike or source.saved != target.saved or source.unpacks != target.unpacks:
        return None
    outcome = Simulation(target).outcome(dict(plan.actions))
    if outcome is None or outcome.peak > plan.budget_bytes:
        return None
    return replace(plan, graph=target.graph, predicted_peak=outcome.peak, added_seconds=outcome.seconds)


def _tiers(actions: Sequence[Kind], bits: Sequence[int]) -> list[tuple[int, ...]]:
    """The widths to try: first the widest alone, then one more at a time."""
    widths = sorted(set(bits), reverse=True)
    if "compress" not in actions or not widths:
        return [()]
    return [tuple(widths[:count]) for count in range(1, len(widths) + 1)]


def _best(search: Search, walks: list[list[State]], budget: int) -> State:
    candidates = [state for states in walks for state in _candidates(search, states, budget)]
    return search.widen(min(candidates, key=lambda state: state.seconds), budget)


def _simpler_walks(
    trace: StepTrace, search: Search, actions: Sequence[Kind], bits: tuple[int, ...]
) -> list[list[State]]:
    """Walks with one kind of action, where two are allowed; a greedy walk over both can end too early."""
    if not {"recompute", "compress"} <= set(actions):
        return []
    recompute, compress = Search(trace, True, ()), Search(trace, False, bits)
    compressed = compress.walk(compress.start())
    return [recompute.walk(recompute.start()), compressed + search.walk(compressed[-1])[1:]]


def _candidates(search: Search, states: list[State], budget: int) -> list[State]:
    """States within the budget, the largest first: cleaned at fixed levels below it, and as they were found.

    What is tried for a budget is also tried for a larger one.
    """
    if states[0].peak <= budget:
        return states[:1]
    candidates = []
    level = states[0].peak
    while (state := _first(states, level)) is not None:
        if level <= budget:
            candidates.append(search.clean(state, level))
        level = int(level * SPACING)
    found = _first(states, budget)
    return candidates if found is None else [*candidates, found]


def _first(states: list[State], budget: int) -> State | None:
    return next((state for state in states if state.peak <= budget), None)


def _check(budget_bytes: int, actions: Sequence[str], bits: Sequence[int]) -> None:
    if budget_bytes <= 0:
        raise ValueError(f"budget_bytes must be above 0, got {budget_bytes}")
    unknown = set(actions) - {"recompute", "compress"}
    if unknown:
        raise ValueError(f"actions must be among 'recompute' and 'compress', got {', '.join(sorted(unknown))}")
    if not set(bits) <= set(WIDTHS):
        raise ValueError(f"bits must be among {WIDTHS}, got {tuple(bits)}")
