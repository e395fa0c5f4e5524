"""Cost of measuring: metered local steps against plain ones, and their fraction of a whole run."""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from benchmarks.overhead import CASES, Case
from benchmarks.record import write_record
from fedssl.client.step_costs import CostBook, StepKey
from fedssl.costs.prediction import batches_of_epoch
from fedssl.protocol.parts import build_model
from layerwise import Stage
from ssl_methods import Method

NOTES = """
A local step is metered once for each stage and batch size: operations and kept activations are counted while it runs.
Plain and metered steps of every stage alternate; the seconds are medians. The share is that of the extra time of all
metered steps in the time of all local steps of the run, evaluation and everything else left out, which would lower it.
"""


def add_commands(commands: Any) -> None:
    """Adds ``meter``."""
    parser = commands.add_parser("meter", help="the share of a run that measuring takes")
    parser.add_argument("--repeats", type=int, default=15)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures every case at the length of its configuration and writes the table."""
    rows, data = [], {}
    for case, rounds in zip(CASES, (48, 180), strict=True):
        found = [_stage_seconds(case, stage, size, arguments.repeats) for stage, size in _kinds(case)]
        plain, metered = (sum(side) for side in zip(*found, strict=True))
        steps = rounds * case.clients * case.local_epochs * sum(_steps(case).values())
        share = (metered - plain) / (steps * plain / len(found))
        data[case.name] = {"seconds": found, "steps of the run": steps, "share": share}
        row = {"case": case.name, "kinds of steps": len(found), "steps of the run": steps}
        row |= {"plain step ms": f"{1000 * plain / len(found):.1f}", "metered ms": f"{1000 * metered / len(found):.1f}"}
        rows.append(row | {"share of the run": f"{100 * share:.3f} %"})
    write_record(results, "meter", "The meter's share of a run", rows, data, NOTES)


def _steps(case: Case) -> dict[int, int]:
    return batches_of_epoch(case.images // case.clients, 64)


def _kinds(case: Case) -> list[tuple[Stage, int]]:
    depth = case.spec.options.get("depth", 12)
    return [(stage, size) for stage in case.scheme.stages(depth, case.rounds) for size in _steps(case)]


def _stage_seconds(case: Case, stage: Stage, size: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a plain and of a metered step."""
    model = build_model(case.spec, case.method, case.views, partial(AdamW, lr=1e-3), 0)
    model.attach(stage)
    step = _step(model.method, (size, case.spec.in_channels, case.spec.image_size, case.spec.image_size))
    book, key = CostBook(), StepKey(stage=0, extent=1, blocks=1, batch_size=size)
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        book.costs = {}
        for side in reversed(times):
            start = time.perf_counter()
            book.step(key, model.method, step)
            if repeat > 1:
                side.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _step(method: Method, shape: tuple[int, int, int, int]) -> Any:
    optimizer, inputs = method.configure_optimizers(), tuple(torch.randn(shape) for _ in range(2))

    def run() -> None:
        method.loss_of(inputs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

    return run
