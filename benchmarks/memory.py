"""Memory plans: cost of a budget in time and in exactness of gradients."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.record import write_record
from fedssl.client.local_step import LocalStep
from fedssl.costs.fake_step import FakeStep
from fedssl.protocol.parts import PartitionedModel, build_model
from fedssl.utils.files import write_atomically
from layerwise import EncoderSpec, EndToEnd, LiveBytes
from layerwise.memory import Actions, ActivationPlan, PlannedStep, PlanOutcome, Search
from ssl_methods import MoCoV3, NaturalViews

MIB = 2**20
BUDGETS = (75, 50, 35, 25, 15)
CASES = {
    "ViT-Tiny": EncoderSpec("vit_tiny_patch16_224", 32, 3, "learned", {"patch_size": 4}),
    "ResNet-18": EncoderSpec("resnet18", 32, 3),
}
PLAN = "plan"
EVENLY = {f"{bits} bits": bits for bits in (8, 4, 2)}
NOTES = """
One step (forward and backward, both views, MoCo v3), images of 32x32; budgets are shares of the bytes that autograd
keeps without a plan. Peak: largest number of such bytes at any moment, restored and recomputed ones included, without
allocator rounding; predicted: on tensors without data. All tensors: largest number of bytes of all tensors alive. Time:
median of interleaved pairs of a step with and without the plan, processor time on a CPU; predicted: by nominal rates.
Error: norm of the difference of the gradients over the norm of the gradient without a plan, on the same batch. "8
bits" and so on: all activations in that width, nothing recomputed, whatever the budget.
"""


@dataclass
class Case:
    """A step, its gradient without a plan, and how often it is timed."""

    model: PartitionedModel
    step: Callable[[], Tensor]
    search: Search
    gradient: Tensor
    repeats: int

    @property
    def whole(self) -> int:
        """Bytes kept for backward without a plan."""
        return self.search({}).activations


def add_commands(commands: Any) -> None:
    """Adds ``memory``."""
    parser = commands.add_parser("memory", help="budgets of 75 to 15 %% of the activations: peak, time, gradient error")
    parser.add_argument("--work", default="runs/benchmark_memory", help="folder of finished measurements")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="batch 16, one budget, ViT only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures what is missing and writes the table."""
    if arguments.quick:
        arguments.batch, arguments.budgets, arguments.repeats = 16, [50], 3
    rows = []
    for name in list(CASES)[: 1 if arguments.quick else None]:
        found = Path(arguments.work) / f"{name}-{arguments.batch}-{arguments.device}.json"
        known: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {}
        rows += list(_rows(name, arguments, known, found))
    stem = "memory" if arguments.device == "cpu" else f"memory_{arguments.device}"
    title = f"Memory plans at batch {arguments.batch} on {arguments.device}"
    write_record(
        results, f"{stem}_quick" if arguments.quick else stem, title, [_shown(row) for row in rows], rows, NOTES
    )


def _rows(name: str, arguments: argparse.Namespace, known: dict[str, Any], found: Path) -> Iterator[dict[str, Any]]:
    case = None
    for method, percent in [*((PLAN, percent) for percent in arguments.budgets), *((each, 100) for each in EVENLY)]:
        key = f"{method} {percent}"
        if key not in known:
            case = case or _case(name, arguments)
            known[key] = {"model": name, "method": method, "percent": percent} | _measure(case, method, percent)
            print(known[key], flush=True)
            found.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(found, lambda path: path.write_text(json.dumps(known, indent=1)))
        yield known[key]


def _case(name: str, arguments: argparse.Namespace) -> Case:
    spec, batch = CASES[name], arguments.batch
    model = build_model(spec, MoCoV3, NaturalViews(), partial(AdamW, lr=1e-3), 0)
    model.attach(EndToEnd().stages(len(model.encoder.blocks), 1)[0])
    fake = FakeStep(model.method, spec, LocalStep())

    def activations(actions: Actions) -> PlanOutcome:
        """A budget of this benchmark is one of the activations, not of the whole step."""
        outcome = fake.planned(batch, actions)
        return replace(outcome, peak=outcome.activations)

    model.to(torch.device(arguments.device))
    generator, shape = torch.Generator().manual_seed(0), (batch, 3, spec.image_size, spec.image_size)
    views = tuple(torch.randn(shape, generator=generator).to(arguments.device) for _ in range(2))
    step = partial(model.method.loss_of, views)
    return Case(model, step, Search(activations), _gradient(model, step), arguments.repeats)


def _measure(case: Case, method: str, percent: int) -> dict[str, Any]:
    budget, start = case.whole * percent // 100, time.perf_counter()
    try:
        plan: ActivationPlan = case.search.evenly(EVENLY[method]) if method in EVENLY else case.search.fastest(budget)
    except ValueError as error:
        return {"budget": budget, "infeasible": str(error)}
    planned = PlannedStep(case.model.method, plan.actions)
    found = {"budget": budget, "planning_seconds": time.perf_counter() - start, "predicted": plan.peak}
    found |= _effect(case, planned)
    return found | {"peak": planned.peak_bytes, "predicted_added": plan.share}


def _effect(case: Case, planned: PlannedStep) -> dict[str, Any]:
    """Gradient error, all bytes and time of steps inside a context."""
    with planned:
        gradient = _gradient(case.model, case.step)
    times: tuple[list[float], list[float]] = ([], [])
    contexts: tuple[AbstractContextManager[Any], ...] = (nullcontext(), planned)
    for repeat in range(case.repeats + 1):
        for side, context in zip(times, contexts, strict=True):
            start = _clock(gradient)
            with context:
                case.step().backward()
            if repeat:
                side.append(_clock(gradient) - start)
            case.model.method.zero_grad(set_to_none=True)
    plain, slower = map(statistics.median, times)
    return {
        "error": float((gradient - case.gradient).norm() / case.gradient.norm()),
        "equal": bool(torch.equal(gradient, case.gradient)),
        "all_bytes": _all_bytes(case.model, case.step, planned),
        "seconds": slower,
        "plain_seconds": plain,
        "added": slower / plain - 1,
    }


@contextmanager
def _fresh(model: PartitionedModel) -> Iterator[None]:
    model.method.zero_grad(set_to_none=True)
    yield
    model.method.zero_grad(set_to_none=True)


def _gradient(model: PartitionedModel, step: Callable[[], Tensor]) -> Tensor:
    with _fresh(model):
        step().backward()
        return torch.cat([p.grad.flatten() for p in model.method.trained() if p.grad is not None])


def _all_bytes(model: PartitionedModel, step: Callable[[], Tensor], context: AbstractContextManager[Any]) -> int:
    with _fresh(model), LiveBytes([*model.method.parameters(), *model.method.buffers()]) as live, context:
        step().backward()
    return live.peak


def _clock(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _shown(row: dict[str, Any]) -> dict[str, str]:
    label = {"model": row["model"], "method": row["method"], "budget": f"{row['percent']} %"}
    columns = ("budget MiB", "predicted MiB", "peak MiB", "all tensors MiB", "added time %", "gradient error")
    cells = [f"{row['budget'] / MIB:.1f}"]
    if "infeasible" in row:
        return label | dict(zip(columns, [*cells, "", "cannot be met", "", "", ""], strict=True))
    cells += [f"{row['predicted'] / MIB:.1f}" if "predicted" in row else "", f"{row['peak'] / MIB:.1f}"]
    cells += [f"{row['all_bytes'] / MIB:.1f}", f"{100 * row['added']:.0f}"]
    return label | dict(zip(columns, [*cells, "0 (equal)" if row["equal"] else f"{row['error']:.4f}"], strict=True))
