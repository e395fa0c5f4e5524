"""Cost of a local step of CAFF and of LoRA: predicted by the planner, and measured on a real step."""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch.optim import AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.caff_tasks import Task
from benchmarks.record import write_record
from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.messages import num_bytes
from fedssl.protocol.parts import PartitionedModel, build_model
from fedssl.utils.units import MIB
from layerwise import LastLayers, LoRA, Scheme, Stage, StepMeter, tensor_bytes
from ssl_methods.method import Inputs

WIDTH, HEADS, DEPTH, BATCH, RANKS = 256, 8, 6, 16, [1, 8]
NOTES = f"""
One local step with AdamW of the family's own size: {DEPTH} blocks, width {WIDTH}, {HEADS} heads, batch {BATCH}; images
have 16 tokens, texts 64. Predicted: peak by the planner, without data. All else is measured in a real step. Tensors:
parameters, optimizer state, inputs and the most that torch's allocator adds to them. Process: by how much the resident
memory of a process of its own grows at its most (Linux), which has what the planner does not count: kernels' scratch,
memory that the C library does not give back, and blocks that are built but not used. Kept: most bytes that autograd
keeps for backward. GMACs: by torch's counter. "of LoRA's": over those of LoRA with rank {RANKS[-1]}.
"""


@dataclass(frozen=True)
class Step:
    """One configuration.

    Args:
        task: Name of the task.
        trained: Last blocks that are trained; 0 with adapters.
        rank: Of adapters; 0 without.
        predicted: Bytes of the peak, as planned.
        tensors: Bytes of the peak by torch's allocator.
        process: Bytes that the process grows by.
        kept: Most bytes that autograd keeps.
        macs: Multiply-accumulates.
        upload: Bytes sent in a round.
    """

    task: str
    trained: int
    rank: int
    predicted: int
    tensors: int
    process: int
    kept: int
    macs: int
    upload: int

    def row(self, lora: Step) -> dict[str, str]:
        """For the table."""
        return {
            "task": self.task,
            "trained": f"rank {self.rank}" if self.rank else f"last {self.trained} of {DEPTH}",
            "predicted MiB": f"{self.predicted / MIB:.1f}",
            "tensors MiB": f"{self.tensors / MIB:.1f}",
            "process MiB": f"{self.process / MIB:.1f}",
            "kept MiB": f"{self.kept / MIB:.1f}",
            "kept of LoRA's": f"{self.kept / lora.kept:.2f}",
            "GMACs": f"{self.macs / 1e9:.2f}",
            "GMACs of LoRA's": f"{self.macs / lora.macs:.2f}",
            "sent MiB": f"{self.upload / MIB:.2f}",
        }


def write_steps(tasks: list[Task], results: Path) -> None:
    """Measures steps of every number of trained layers and of adapters, and writes the table."""
    steps, table = [], []
    for task in tasks:
        wanted = [(task, trained, 0) for trained in range(DEPTH, 0, -1)] + [(task, 0, rank) for rank in RANKS]
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as alone:
            found = alone.starmap(_measured, wanted, chunksize=1)
        table += [step.row(found[-1]) for step in found]
        steps += found
    write_record(results, "caff_steps", "What CAFF and LoRA take", table, [asdict(step) for step in steps], NOTES)


def _measured(task: Task, trained: int, rank: int) -> Step:
    """A step in this process, which has taken none before."""
    small, _ = _model(task, 8, LoRA([1]))
    _take(small, _inputs(small))  # what the first step loads does not count
    before = _resident("VmRSS")
    model, stage = _model(task, WIDTH, LoRA([rank]) if rank else LastLayers(), trained)
    inputs = _inputs(model)
    optimizer = _take(model, inputs)
    Path("/proc/self/clear_refs").write_text("5")
    _take(model, inputs, optimizer)
    process = _resident("VmHWM") - before
    modules = (model.method.prefix, model.method.backbone, *model.method.heads().values())
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _take(model, inputs, optimizer)
    tensors = tensor_bytes([*own, *state, *inputs]) + _most_allocated(profiler)
    with StepMeter(own) as meter:
        _take(model, inputs, optimizer)
    cost, upload = meter.cost(), num_bytes(model.read(model.trained_names(stage)))
    predicted = StepPredictor(model)(stage, BATCH).peak
    return Step(task.name, trained, rank, predicted, tensors, process, cost.activation_bytes, cost.macs, upload)


def _model(task: Task, width: int, scheme: Scheme, trained: int = 0) -> tuple[PartitionedModel, Stage]:
    """A model that is attached to a stage, in which the last layers are trained, or adapters."""
    spec = scheme.adapt(task.spec(DEPTH, width, HEADS))
    model = build_model(spec, task.method(), task.views, partial(AdamW, lr=1e-3), 0)
    (whole,) = scheme.stages(DEPTH, 1)
    stage = next(each for each in scheme.choices(whole) if each.adapters or len(each.trained) == trained)
    model.attach(stage)
    return model, stage


def _inputs(model: PartitionedModel) -> Inputs:
    shape = (BATCH, *model.encoder.spec.input_shape)
    return tuple(torch.zeros_like(each) for each in model.method.example_inputs(shape))


def _take(model: PartitionedModel, inputs: Inputs, optimizer: Optimizer | None = None) -> Optimizer:
    """A step, with a new optimizer or a known one."""
    chosen = optimizer or model.method.configure_optimizers()
    assert isinstance(chosen, Optimizer)
    model.method.loss_of(inputs).backward()
    chosen.step()
    chosen.zero_grad(set_to_none=True)
    return chosen


def _resident(key: str) -> int:
    """Bytes of resident memory of this process: now, or at its most since that was cleared."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def _most_allocated(profiler: profile) -> int:
    """Bytes that the allocator gave in a step, less those it got back, at their most."""
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
