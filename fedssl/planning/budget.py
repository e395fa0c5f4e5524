"""Schemes, batch sizes and options that fit a device's memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from typing import Any

from fedssl.costs.prediction import StepPredictor
from fedssl.memory_budget.planner import ActivationPlanner
from fedssl.planning.plan import Planner
from fedssl.server.client_stage import StageOptions
from layerwise import Stage
from layerwise.schemes import scheme_choices

SMALLEST_BATCH = 8
LARGEST_FACTOR = 4
"""Largest batch size that is tried, as a multiple of the configured one."""

ORDER = (
    "best first: a batch no smaller than the configured one, or the nearest to it; then alignment and proximal term "
    "kept; then more blocks trained together; then no larger batch; then fewer operations"
)


@dataclass(frozen=True)
class Choice:
    """One way to train.

    Args:
        scheme: Name of the scheme.
        blocks_per_stage: Blocks that each stage adds.
        blocks_trained: Most blocks trained together.
        batch_size: Images a local step.
        alignment: Whether representation alignment is on.
        proximal: Whether the proximal term is on.
        peak_memory_bytes: Most bytes alive in a local step of the most expensive stage.
        macs_per_image: Multiply-accumulates of a local epoch, mean of the stages, without recomputation.
        plan_time: Time that a memory plan is predicted to add to a local step, as a share; ``None`` without a plan.
    """

    scheme: str
    blocks_per_stage: list[int]
    blocks_trained: int
    batch_size: int
    alignment: bool
    proximal: bool
    peak_memory_bytes: int
    macs_per_image: float
    plan_time: float | None = None


def choices(planner: Planner) -> list[Choice]:
    """Return all that is tried: schemes with equal stages and the configured one, batch sizes, options on and off."""
    found, settings = [], planner.settings
    local = settings.local
    # As configured first. What is not configured is never tried: nobody could say with which strength.
    for alignment, proximal in product(*([True, False] if on else [False] for on in (local.alignment, local.proximal))):
        tried = replace(
            local, alignment=local.alignment if alignment else None, proximal=local.proximal if proximal else 0.0
        )
        # The planner's own predictor already knows the steps as configured.
        same = tried == local
        predictor = planner.predictor if same else replace(settings, local=tried).predictor(planner.model)
        for (name, stages), batch_size in product(candidates(planner), batch_sizes(planner)):
            found.append(_choice(name, stages, predictor, batch_size, alignment, proximal))
    return found


def candidates(planner: Planner) -> list[tuple[str, list[Stage]]]:
    """Return names and stages of the configured scheme and all with equal stages; equal ones occur once."""
    configured, seed, blocks = planner.settings.scheme, planner.settings.seed, planner.num_blocks
    stages = configured.stages(blocks, planner.settings.rounds)
    variants = [StageOptions(configured, stage, seed).priced for stage in stages]
    named = [(configured.name, list(each)) for each in zip(*variants, strict=True)]
    # Each stage lasts as many rounds as it adds blocks: every number of stages divides them so.
    named += [(scheme.name, scheme.stages(blocks, blocks)) for scheme in scheme_choices(blocks)]
    # The first of equal ones, so that the configured scheme keeps its place and its name.
    found: dict[tuple[Stage, ...], tuple[str, list[Stage]]] = {}
    for name, each in named:
        found.setdefault(tuple(replace(stage, rounds=1) for stage in each), (name, each))
    return list(found.values())


def batch_sizes(planner: Planner) -> list[int]:
    """Return the configured size, then powers of two up to four times it; none that no client could fill."""
    most = min(LARGEST_FACTOR * planner.settings.local.batch_size, max(planner.images))
    powers = [2**i for i in range(SMALLEST_BATCH.bit_length() - 1, most.bit_length())]
    return [planner.batch_size, *(size for size in powers if size != planner.batch_size)]


def fit_budget(planner: Planner, budget: int) -> dict[str, Any]:
    """Rank what fits the budget, best first, and name what needs least.

    Args:
        planner: Planner of the configured run.
        budget: Bytes that training may use on a device.
    """
    return rank([*choices(planner), *_planned_choices(planner, budget)], planner.batch_size, budget)


def _planned_choices(planner: Planner, budget: int) -> list[Choice]:
    """Return the configured scheme and end-to-end training inside the budget, where memory plans bring them there."""
    if planner.settings.model.micro_batch or planner.settings.local.bank:
        return []
    batch_size = planner.batch_size
    steps = ActivationPlanner(planner.predictor, batch_size)
    configured = bool(planner.settings.local.alignment), bool(planner.settings.local.proximal)
    found = []
    # The configured scheme comes first; others are of interest only where a single stage makes them dear.
    first, *others = candidates(planner)
    for name, stages in [first, *(each for each in others if len(each[1]) == 1)]:
        try:
            plans = [steps.plan(stage, batch_size, budget) for stage in stages]
        except ValueError:
            continue  # no plan brings a stage below the budget
        if not any(plans):
            continue  # it fits without plans, and is among the choices already
        choice = _choice(name, stages, planner.predictor, batch_size, *configured)
        peak = max(
            plan.peak if plan else steps.peak_without_plan(stage, batch_size)
            for stage, plan in zip(stages, plans, strict=True)
        )
        slower = max(plan.share for plan in plans if plan)
        found.append(replace(choice, peak_memory_bytes=peak, plan_time=slower))
    return found


def rank(tried: list[Choice], batch_size: int, budget: int) -> dict[str, Any]:
    """Rank what fits the budget, best first, and name what needs least.

    Args:
        tried: All choices.
        batch_size: The configured one.
        budget: Bytes that training may use on a device.
    """
    ordered = sorted(tried, key=lambda choice: preference(choice, batch_size))
    least = min(ordered, key=lambda choice: choice.peak_memory_bytes)
    fits = [asdict(choice) for choice in ordered if choice.peak_memory_bytes <= budget]
    cheapest = asdict(least) | {"missing_bytes": max(0, least.peak_memory_bytes - budget)}
    return {"bytes": budget, "tried": len(tried), "fits": fits, "cheapest": cheapest}


def preference(choice: Choice, batch_size: int) -> tuple[float, ...]:
    """Return the key that sorts choices as :data:`ORDER` says, given the configured batch size."""
    excess = math.log2(choice.batch_size / batch_size)
    off = -choice.alignment - choice.proximal
    return max(0.0, -excess), off, -choice.blocks_trained, max(0.0, excess), choice.macs_per_image


def _choice(
    name: str, stages: list[Stage], predictor: StepPredictor, batch_size: int, alignment: bool, proximal: bool
) -> Choice:
    """Price one way to train: peak and operations of its stages' local steps."""
    steps = [predictor(stage, batch_size) for stage in stages]
    depths = [0, *(stage.depth for stage in stages)]
    macs = sum(step.macs for step in steps) / len(steps) / batch_size
    return Choice(
        scheme=name,
        blocks_per_stage=[after - before for before, after in pairwise(depths) if after > before],
        blocks_trained=max(len(stage.trained) for stage in stages),
        batch_size=batch_size,
        alignment=alignment,
        proximal=proximal,
        peak_memory_bytes=max(step.peak for step in steps),
        macs_per_image=macs,
    )
