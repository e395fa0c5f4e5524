"""Peak memory of a local step, layer-wise against end-to-end, with every option that saves more of it."""

from __future__ import annotations

import argparse
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import write_record
from benchmarks.steps import WHOLE, attached, medians, seconds, stages_by_name
from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.parts import PartitionedModel
from layerwise import LiveBytes, Stage
from layerwise.memory import Action, PlannedStep, segments
from ssl_methods import Views

MIB = 2**20
NOTES = """
MoCo v3, ViT-Tiny of 12 blocks, images of 32x32, patches of 4, AdamW; layer-wise rows are means over the stages. Peak:
largest number of bytes of all tensors alive in a step (weights, gradients, optimizer state, target branch, activations,
both views), rounding by the allocator left out. Predicted: as `train.py plan` does, which is for 32 bits. `less
memory`: peak of plain end-to-end training over the row's. Time: processor time over that of the plain step of the same
training, which takes turns with it. Error: norm of the difference of the gradients over the norm of the plain step's,
same batch; the largest of the stages. Micro-batches: `model.micro_batch`; with one a view, the views are one after the
other. Recomputation: every block and head. bf16: autocast.
"""


@dataclass(frozen=True)
class Option:
    """A way to take a step.

    Args:
        pieces: Micro-batches a view; 0: without.
        recompute: With a memory plan that recomputes all it can.
        bf16: In mixed precision.
    """

    pieces: int = 0
    recompute: bool = False
    bf16: bool = False


OPTIONS = {
    "plain": Option(),
    "views one after the other": Option(pieces=1),
    "4 micro-batches a view": Option(pieces=4),
    "16 micro-batches a view": Option(pieces=16),
    "recomputation": Option(recompute=True),
    "bf16": Option(bf16=True),
    "16 micro-batches a view, bf16": Option(pieces=16, bf16=True),
}


def add_commands(commands: Any) -> None:
    """Adds ``step_memory``."""
    parser = commands.add_parser("step_memory", help="peak memory, time and gradient error of what saves memory")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stages", type=int, nargs="+", default=range(1, 13), help="counted from 1")
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), metavar="OPTION")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures every stage and writes the table."""
    data = {}
    options = {name: OPTIONS[name] for name in dict.fromkeys(["plain", *arguments.options])}
    for name, stage in stages_by_name(arguments.stages).items():
        data[name] = _measure(stage, options, arguments.batch, arguments.repeats)
        print(name, data[name], flush=True)
    title = f"Memory of a local step at batch {arguments.batch}"
    write_record(results, "step_memory", title, _table(data), data, NOTES)


@dataclass
class _Case:
    """Steps of one stage taken in one way."""

    model: PartitionedModel
    context: AbstractContextManager[Any]
    optimizer: Any
    views: Views
    times: list[tuple[float, float]] = field(default_factory=list)

    def gradient(self) -> Tensor:
        """Gradient of the step."""
        with self.context:
            self.model.method.loss_of(self.views).backward()
        return torch.cat([p.grad.flatten() for p in self.model.method.trained() if p.grad is not None])

    def step(self) -> None:
        """A whole step."""
        with self.context:
            self.model.method.loss_of(self.views).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.method.after_step()

    def peak(self) -> int:
        """Most bytes alive in a step; optimizer state exists already."""
        method, state = self.model.method, [t for each in self.optimizer.state.values() for t in each.values()]
        with LiveBytes([*method.parameters(), *method.buffers(), *state, *self.views]) as live:
            self.step()
        return live.peak


def _measure(stage: Stage, options: dict[str, Option], batch: int, repeats: int) -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(batch, 3, 32, 32, generator=generator) for _ in range(2))
    cases = {name: _case(stage, option, (first, second)) for name, option in options.items()}
    gradients = {name: case.gradient() for name, case in cases.items()}
    plain, found = gradients["plain"], {}
    for name, case in cases.items():
        case.step()
        found[name] = {
            "peak": case.peak(),
            "predicted": _predicted(stage, options[name], batch),
            "error": float((gradients[name] - plain).norm() / plain.norm()),
        }
    for _ in range(repeats):
        for case in cases.values():
            case.times.append(seconds(case.step))
    for name, case in cases.items():
        found[name]["seconds"] = medians(case.times)[1]
    return found


def _case(stage: Stage, option: Option, views: Views) -> _Case:
    batch = len(views[0])
    model = attached(stage, max(1, batch // option.pieces) if option.pieces else None)
    context: AbstractContextManager[Any] = nullcontext()
    if option.recompute:
        context = _recomputing(model)
    elif option.bf16:
        context = torch.autocast("cpu", torch.bfloat16)
    return _Case(model, context, model.method.configure_optimizers(), views)


def _recomputing(model: PartitionedModel) -> PlannedStep:
    """Keeps the inputs of blocks and heads only, which leaves gradients as they are."""
    method = model.method
    names = segments(method, [method.backbone, *method.heads().values()])
    return PlannedStep(method, dict.fromkeys(names, Action("all")))


def _predicted(stage: Stage, option: Option, batch: int) -> int | None:
    if option.recompute or option.bf16:
        return None
    size = max(1, batch // option.pieces) if option.pieces else None
    return StepPredictor(attached(stage, size)).run(stage, batch).peak


def _table(data: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, str]]:
    whole, stages = data[WHOLE], [found for name, found in data.items() if name != WHOLE]
    reference = whole["plain"]["peak"]
    return [_row(WHOLE, option, [whole], reference) for option in whole] + [
        _row("layer-wise", option, stages, reference) for option in whole
    ]


def _row(training: str, option: str, stages: list[dict[str, dict[str, Any]]], reference: int) -> dict[str, str]:
    found = [stage[option] for stage in stages]
    peak = statistics.fmean(each["peak"] for each in found)
    slower = statistics.fmean(each["seconds"] for each in found)
    slower /= statistics.fmean(stage["plain"]["seconds"] for stage in stages)
    predicted = [each["predicted"] for each in found if each["predicted"]]
    return {
        "training": training,
        "option": option,
        "peak MiB": f"{peak / MIB:.1f}",
        "predicted MiB": f"{statistics.fmean(predicted) / MIB:.1f}" if predicted else "",
        "less memory": f"{reference / peak:.1f}",
        "time": f"{slower:.2f}",
        "gradient error": f"{max(each['error'] for each in found):.1e}",
    }
