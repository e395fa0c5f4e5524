"""Memory plans: what a budget costs in time and gradients."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from benchmarks.record import write_record
from fedssl.files import write_atomically
from fedssl.model import SplitModel, build_model
from layerwise import EncoderSpec, EndToEnd, LiveBytes
from layerwise.memory import PlannedStep, StepTrace, plan_memory, trace_step, with_nominal_times
from ssl_methods import MoCoV3, NaturalViews

MIB = 2**20
BUDGETS = (75, 50, 35, 25, 15)
CASES = {
    "ViT-Tiny": EncoderSpec("vit_tiny_patch16_224", 32, 3, "learned", {"patch_size": 4}),
    "ResNet-18": EncoderSpec("resnet18", 32, 3),
}
PLANS: dict[str, dict[str, Any]] = {
    "FedHybrid": {},
    "recompute only": {"actions": ("recompute",)},
    **{f"compress only, {bits} bits": {"actions": ("compress",), "bits": (bits,)} for bits in (8, 4, 2)},
}
NOMINAL = "FedHybrid, nominal times"
TORCH = "torch checkpoints by block"
MATRIX = [torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.convolution]
NOTES = """
One step (forward and backward, both views, MoCo v3), images of 32x32; budgets are shares of the bytes that autograd
keeps without a plan. Peak: largest number of such bytes at any moment, transient copies included, without allocator
rounding; predicted: by the plan. All tensors: largest number of bytes of all tensors alive. Time: median of interleaved
pairs of a step with and without the plan. Error: norm of the difference of the gradients over the norm of the gradient
without a plan, on the same batch. Nominal times: the plan that a federation uses, made without measuring. By
block: `torch.utils.checkpoint` of the first k blocks, first with the results of matrix products kept (selective), then
without, at the smallest k that meets the budget; their peak is the difference of all tensors from the unplanned step.
"""


@dataclass
class Case:
    """A step, its gradient without a plan, and how often it is timed."""

    model: SplitModel
    step: Callable[[], Tensor]
    trace: StepTrace
    gradient: Tensor
    all_bytes: int
    repeats: int


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
    for method in (*PLANS, NOMINAL, TORCH):
        for percent in arguments.budgets:
            key = f"{method} {percent}"
            if key not in known:
                case = case or _case(name, arguments)
                known[key] = {"model": name, "method": method, "percent": percent} | _measure(case, method, percent)
                print(known[key], flush=True)
                found.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(found, lambda path: path.write_text(json.dumps(known, indent=1)))
            yield known[key]


def _case(name: str, arguments: argparse.Namespace) -> Case:
    spec = CASES[name]
    model = build_model(spec, MoCoV3, NaturalViews(), partial(AdamW, lr=1e-3), 0).to(torch.device(arguments.device))
    model.attach(EndToEnd().stages(len(model.encoder.blocks), 1)[0])
    generator, shape = torch.Generator().manual_seed(0), (arguments.batch, 3, spec.image_size, spec.image_size)
    views = tuple(torch.randn(shape, generator=generator).to(arguments.device) for _ in range(2))
    step = partial(model.method.loss_of, views)
    trace = trace_step(step, model.method)
    return Case(model, step, trace, _gradient(model, step), _all_bytes(model, step, nullcontext()), arguments.repeats)


def _measure(case: Case, method: str, percent: int) -> dict[str, Any]:
    budget = case.trace.saved_bytes * percent // 100
    start = time.perf_counter()
    if method == TORCH:
        return {"budget": budget} | _by_block(case, budget)
    trace = with_nominal_times(case.trace) if method == NOMINAL else case.trace
    try:
        plan = plan_memory(trace, budget, **PLANS.get(method, {}))
    except ValueError as error:
        return {"budget": budget, "infeasible": str(error)}
    planned = PlannedStep(plan, trace, case.model.method)
    found = {"budget": budget, "planning_seconds": time.perf_counter() - start, "predicted": plan.predicted_peak}
    found |= _effect(case, planned)
    return found | {"peak": planned.peak_bytes, "predicted_seconds": plan.added_seconds}


def _by_block(case: Case, budget: int) -> dict[str, Any]:
    """The first blocks checkpointed, as few as the budget allows; with matrix products kept if that is enough."""
    counts = range(1, len(case.model.encoder.blocks) + 1)
    for selective in (True, False):
        peak = cache(lambda count, selective=selective: _peak_by_block(case, count, selective))
        fewest = bisect_left(counts, True, key=lambda count, peak=peak: peak(count) <= budget)
        if fewest < len(counts):
            count = counts[fewest]
            blocks = _Checkpointed(case.model, count, selective)
            return {"peak": peak(count), "blocks": count, "selective": selective} | _effect(case, blocks)
    return {"infeasible": "with every block checkpointed the peak is above the budget"}


def _peak_by_block(case: Case, count: int, selective: bool) -> int:
    """Falls with the number of blocks."""
    return (
        case.trace.saved_bytes
        - case.all_bytes
        + _all_bytes(case.model, case.step, _Checkpointed(case.model, count, selective))
    )


class _Checkpointed(AbstractContextManager[None]):
    """Checkpoints the first blocks while it is entered."""

    def __init__(self, model: SplitModel, count: int, selective: bool) -> None:
        self._blocks: list[nn.Module] = list(model.encoder.blocks)[:count]
        context = partial(create_selective_checkpoint_contexts, [op.default for op in MATRIX])
        self._options: dict[str, Any] = {"use_reentrant": False} | ({"context_fn": context} if selective else {})

    def __enter__(self) -> None:
        for block in self._blocks:
            block.forward = partial(checkpoint, block.forward, **self._options)

    def __exit__(self, *error: object) -> None:
        for block in self._blocks:
            del block.forward


def _effect(case: Case, planned: AbstractContextManager[Any]) -> dict[str, Any]:
    """Gradient error, all bytes and time of steps inside a context."""
    with planned:
        gradient = _gradient(case.model, case.step)
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(case.repeats + 1):
        for side, context in zip(times, (nullcontext(), planned), strict=True):
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
        "plain_all_bytes": case.all_bytes,
        "seconds": slower,
        "plain_seconds": plain,
        "added": slower / plain - 1,
    }


@contextmanager
def _fresh(model: SplitModel) -> Iterator[None]:
    model.method.zero_grad(set_to_none=True)
    yield
    model.method.zero_grad(set_to_none=True)


def _gradient(model: SplitModel, step: Callable[[], Tensor]) -> Tensor:
    with _fresh(model):
        step().backward()
        return torch.cat([p.grad.flatten() for p in model.method.trained() if p.grad is not None])


def _all_bytes(model: SplitModel, step: Callable[[], Tensor], context: AbstractContextManager[Any]) -> int:
    with _fresh(model), LiveBytes([*model.method.parameters(), *model.method.buffers()]) as live, context:
        step().backward()
    return live.peak


def _clock(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _shown(row: dict[str, Any]) -> dict[str, str]:
    label = {"model": row["model"], "method": row["method"], "budget": f"{row['percent']} %"}
    columns = ("budget MiB", "predicted MiB", "peak MiB", "all tensors MiB", "added time %", "gradient error")
    cells = [f"{row['budget'] / MIB:.1f}"]
    if "infeasible" in row:
        return label | dict(zip(columns, [*cells, "", "cannot be met", "", "", ""], strict=True))
    cells += [f"{row['predicted'] / MIB:.1f}" if "predicted" in row else "", f"{row['peak'] / MIB:.1f}"]
    cells += [f"{row['all_bytes'] / MIB:.1f}", f"{100 * row['added']:.0f}"]
    return label | dict(zip(columns, [*cells, "0 (equal)" if row["equal"] else f"{row['error']:.4f}"], strict=True))
