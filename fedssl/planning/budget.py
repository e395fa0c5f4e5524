"""Which schemes, batch sizes and options fit a device's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from typing import Any

from rich.console import Console

from fedssl.costs.prediction import StepPredictor
from fedssl.memory_budget.planner import ActivationPlanner
from fedssl.planning.plan import Planner
from fedssl.planning.table import amount, plain_table
from fedssl.server.client_stage import StageOptions
from fedssl.utils.units import format_bytes
from layerwise import Scheme, Stage
from layerwise.schemes import scheme_choices

SMALLEST_BATCH = 8
LARGEST_FACTOR = 4
"""Largest batch size that is tried, as a multiple of the configured one."""

SHOWN = 12
"""Rows of the table for people."""

ORDER = (
    "best first: a batch no smaller than the configured one, or the nearest to it; then alignment and proximal term "
    "kept; then more blocks trained together; then no larger batch; then fewer operations"
)


@dataclass(frozen=True)
class Choice:
    """One way to train.

    Args:
        scheme: Its name.
        blocks_per_stage: Blocks that each stage adds.
        blocks_trained: Most blocks trained together.
        batch_size: Images a local step.
        alignment: Whether representation alignment is on.
        proximal: Whether the proximal term is on.
        peak_memory_bytes: Of a local step at the most expensive stage.
        macs_per_image: Multiply-accumulates a local epoch, mean of the stages, without recomputation.
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
    """Everything that is tried: schemes with equal stages and the configured one, batch sizes, options on and off."""
    found = []
    local = planner.settings.local
    for alignment, proximal in _options(planner):
        tried = replace(
            local, alignment=local.alignment if alignment else None, proximal=local.proximal if proximal else 0.0
        )
        predictor = (
            planner.predictor if tried == local else replace(planner.settings, local=tried).predictor(planner.model)
        )
        for (name, stages), batch_size in product(candidates(planner), batch_sizes(planner)):
            found.append(_choice(name, stages, predictor, batch_size, alignment, proximal))
    return found


def candidates(planner: Planner) -> list[tuple[str, list[Stage]]]:
    """Names and stages of the configured scheme and all with equal stages; equal ones occur once."""
    configured, seed = planner.settings.scheme, planner.settings.seed
    stages = configured.stages(planner.num_blocks, planner.settings.rounds)
    choices = [StageOptions(configured, stage, seed).priced for stage in stages]
    named = [(configured.name, list(each)) for each in zip(*choices, strict=True)]
    named += [(each.name, _equal_stages(each, planner.num_blocks)) for each in scheme_choices(planner.num_blocks)]
    return list({tuple((s.present, s.trained) for s in each[1]): each for each in named}.values())


def batch_sizes(planner: Planner) -> list[int]:
    """The configured batch size, then powers of two up to four times it; none that no client could fill."""
    configured, filled = planner.settings.local.batch_size, planner.largest_batch(planner.settings.local.batch_size)
    most = min(LARGEST_FACTOR * configured, max(planner.images))
    powers = [2**i for i in range(SMALLEST_BATCH.bit_length() - 1, most.bit_length()) if 2**i <= most]
    return [filled, *(size for size in powers if size != filled)]


def fit_budget(planner: Planner, budget: int) -> dict[str, Any]:
    """What fits the budget, best first, and what needs least.

    Args:
        planner: Of the configured run.
        budget: Bytes that training may use on a device.
    """
    tried, batch_size = choices(planner), planner.largest_batch(planner.settings.local.batch_size)
    return rank([*tried, *_planned_choices(planner, budget, batch_size)], batch_size, budget)


def _planned_choices(planner: Planner, budget: int, batch_size: int) -> list[Choice]:
    """End-to-end training and the configured scheme inside the budget, where that takes and permits memory plans."""
    if planner.settings.model.micro_batch or planner.settings.local.bank:
        return []
    steps = ActivationPlanner(planner.predictor, batch_size)
    configured = bool(planner.settings.local.alignment), bool(planner.settings.local.proximal)
    found = []
    for place, (name, stages) in enumerate(candidates(planner)):
        if place and len(stages) > 1:
            continue
        try:
            plans = [steps.plan(stage, batch_size, budget) for stage in stages]
        except ValueError:
            continue
        made = [plan for plan in plans if plan]
        if made:
            choice = _choice(name, stages, planner.predictor, batch_size, *configured)
            peaks = [
                plan.peak if plan else steps.peak_without_plan(s, batch_size)
                for s, plan in zip(stages, plans, strict=True)
            ]
            slower = max(plan.share for plan in made)
            found.append(replace(choice, peak_memory_bytes=max(peaks), plan_time=slower))
    return found


def rank(tried: list[Choice], batch_size: int, budget: int) -> dict[str, Any]:
    """What fits the budget, best first, and what needs least.

    Args:
        tried: All choices.
        batch_size: The configured one.
        budget: Bytes that training may use on a device.
    """
    fitting = [choice for choice in tried if choice.peak_memory_bytes <= budget]
    least = min(tried, key=lambda choice: (choice.peak_memory_bytes, preference(choice, batch_size)))
    return {
        "bytes": budget,
        "tried": len(tried),
        "fits": [asdict(choice) for choice in sorted(fitting, key=lambda choice: preference(choice, batch_size))],
        "cheapest": asdict(least) | {"missing_bytes": max(0, least.peak_memory_bytes - budget)},
    }


def preference(choice: Choice, batch_size: int) -> tuple[float, ...]:
    """Sorts choices as :data:`ORDER` says, given the configured batch size."""
    excess = math.log2(choice.batch_size / batch_size)
    off = -choice.alignment - choice.proximal
    return max(0.0, -excess), off, -choice.blocks_trained, max(0.0, excess), choice.macs_per_image


def print_budget(budget: dict[str, Any], console: Console) -> None:
    """What fits as a table; if nothing does, by how much the cheapest misses."""
    size, fits, least = format_bytes(budget["bytes"]), budget["fits"], budget["cheapest"]
    if not fits:
        console.print(
            f"nothing fits {size}: the cheapest of {budget['tried']} settings needs "
            f"{format_bytes(least['peak_memory_bytes'])}, {format_bytes(least['missing_bytes'])} too much "
            f"({_setting(least)})",
            highlight=False,
        )
        return
    columns = ["scheme", "blocks", "batch", "alignment", "proximal", "peak MiB", "GMACs/image", "plan"]
    table = plain_table(f"{len(fits)} of {budget['tried']} settings fit {size}", columns, ORDER)
    for row in fits[:SHOWN]:
        options = ("on" if row[key] else "off" for key in ("alignment", "proximal"))
        peak, macs = amount(row["peak_memory_bytes"] / 2**20), f"{row['macs_per_image'] / 1e9:.2f}"
        plan = "" if row["plan_time"] is None else f"+{100 * row['plan_time']:.0f} %"
        table.add_row(row["scheme"], _blocks(row), str(row["batch_size"]), *options, peak, macs, plan)
    console.print(table)
    if len(fits) > SHOWN:
        console.print(f"and {len(fits) - SHOWN} more: --json has them all", highlight=False)


def _setting(row: dict[str, Any]) -> str:
    options = ", ".join(f"{key} {'on' if row[key] else 'off'}" for key in ("alignment", "proximal"))
    return f"{row['scheme']}, {_blocks(row)} blocks a stage, batch {row['batch_size']}, {options}"


def _blocks(row: dict[str, Any]) -> str:
    sizes = row["blocks_per_stage"]
    return str(sizes[0]) if len(set(sizes)) == 1 else "+".join(map(str, sizes))


def _options(planner: Planner) -> Iterator[tuple[bool, bool]]:
    """Whether alignment and proximal term are on: as configured first, and never what is not configured."""
    alignment, proximal = planner.settings.local.alignment, planner.settings.local.proximal
    return product([True, False] if alignment else [False], [True, False] if proximal else [False])


def _equal_stages(scheme: Scheme, num_blocks: int) -> list[Stage]:
    """Stages, each of which lasts as long as it adds blocks: every number of stages divides so."""
    return scheme.stages(num_blocks, num_blocks)


def _choice(
    name: str, stages: list[Stage], predictor: StepPredictor, batch_size: int, alignment: bool, proximal: bool
) -> Choice:
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
