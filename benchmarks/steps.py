"""Time of a local step at every layer-wise stage against end-to-end training, with the same code."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.record import write_record
from fedssl import GlobalAlignment
from fedssl.client.bank import Rows
from fedssl.protocol.parts import PartitionedModel, build_model
from layerwise import EncoderSpec, EndToEnd, LayerWise, Stage, StepMeter
from ssl_methods import Method, MoCoV3, NaturalViews, Views

SPEC = EncoderSpec("vit_tiny_patch16_224", 32, 3, "learned", {"patch_size": 4})
WHOLE = "end-to-end"
PAIRS = 4
EPOCHS = 45
"""Local epochs of a stage: 15 rounds of 3 in LW-FedSSL."""

NOTES = f"""
MoCo v3, ViT-Tiny of 12 blocks, images of 32x32, patches of 4, AdamW. A step is the loss of two given views, backward,
optimizer and momentum target; calibration and alignment are left out. End-to-end training and all stages take turns in
one process. Medians of wall time and of processor time, which other load on the machine disturbs less; with one thread
they agree on an idle machine. `less`: end-to-end training over the stage, or over the mean of the stages. `with
augmentation`: both sides also draw their two views (processor time). `with bank`: the stage trains from an activation
bank of 16 bits, and pays for filling it once with {PAIRS} pairs in {EPOCHS} epochs; end-to-end training draws its views
(processor time; stage 1 has no bank). `alignment`: a step with representation alignment over one without it, of the
same stage (processor time).
"""

Step = Callable[[Views], None]
Seconds = tuple[float, float]
"""Wall time and processor time."""


def add_commands(commands: Any) -> None:
    """Adds ``steps``."""
    parser = commands.add_parser("steps", help="step time of every layer-wise stage against end-to-end")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stages", type=int, nargs="+", default=range(1, 13), help="counted from 1")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures every batch size and writes the table."""
    data = {size: _measure(size, arguments.stages, arguments.repeats) for size in arguments.batch}
    table = [row for size, found in data.items() for row in _rows(size, found)]
    write_record(results, "steps", "Step time of layer-wise training against end-to-end", table, data, NOTES)


def attached(stage: Stage, micro_batch: int | None = None) -> PartitionedModel:
    """A model of its own, at a stage."""
    model = build_model(SPEC, MoCoV3, NaturalViews(), partial(AdamW, lr=1e-3), 0).in_micro_batches(micro_batch)
    model.attach(stage)
    return model


def stages_by_name(numbers: list[int]) -> dict[str, Stage]:
    """End-to-end training, and the layer-wise stages with these numbers."""
    layer_wise = LayerWise().stages(12, 12)
    return {WHOLE: EndToEnd().stages(12, 12)[0]} | {str(number): layer_wise[number - 1] for number in numbers}


def step_of(method: Method) -> Step:
    """A local step, as the training loop takes it."""
    optimizer: Any = method.configure_optimizers()

    def step(views: Views) -> None:
        method.loss_of(views).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

    return step


def seconds(work: Callable[[], Any]) -> Seconds:
    """Duration of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def medians(times: list[Seconds]) -> Seconds:
    """Median wall time and median processor time."""
    wall, processor = map(statistics.median, zip(*times, strict=True))
    return wall, processor


class _Case:
    """Steps of one stage: as they are, with alignment, and from a bank; and their times."""

    def __init__(self, stage: Stage, draw: Callable[[], Views]) -> None:
        self.method = attached(stage).method
        self.step = step_of(self.method)
        self.alignment = GlobalAlignment()
        self.alignment.begin_stage(self.method)
        self.draw = draw
        self.prefix = self.method.prefix
        self.rows: list[Rows] = []
        self.images = 0
        self.times: dict[str, list[Seconds]] = defaultdict(list)

    def macs(self, views: Views) -> int:
        """Multiply-accumulates of a step; taken first, since it also creates the optimizer's state."""
        with StepMeter([*self.method.parameters(), *self.method.buffers()]) as meter:
            self.step(views)
        return meter.cost().macs

    def time(self, views: Views) -> None:
        """Takes one step of each kind."""
        for name, terms in (("plain", []), ("aligned", [self.alignment])):
            self.method.loss_terms = list(terms)
            self.times[name].append(seconds(partial(self.step, views)))
        self.method.loss_terms = []
        if list(self.prefix.children()):
            self.times["filling"].append(seconds(self.fill))
            self.method.prefix = nn.Sequential()
            self.times["banked"].append(seconds(self.step_from_bank))
            self.method.prefix = self.prefix

    def fill(self) -> None:
        """Draws and stores one pair of views of every image."""
        hidden = self.method.run_prefix(self.draw())
        self.images = len(hidden[0])
        self.rows = self.rows or [Rows(len(view), tuple(view.shape[1:]), 16, None) for view in hidden]
        for rows, view in zip(self.rows, hidden, strict=True):
            rows.write(0, view)

    def step_from_bank(self) -> None:
        """A step on what was stored."""
        numbers = torch.arange(self.images)
        first, second = (rows.read(numbers) for rows in self.rows)
        self.step((first, second))


def _measure(size: int, numbers: list[int], repeats: int) -> dict[str, Any]:
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    draw = partial(NaturalViews(), images, generator)
    views, drawing = draw(), []
    cases = {name: _Case(stage, draw) for name, stage in stages_by_name(numbers).items()}
    macs = {name: case.macs(views) for name, case in cases.items()}
    for _ in range(repeats):
        drawing.append(seconds(draw))
        for case in cases.values():
            case.time(views)
    return {"drawing": drawing, "steps": {name: {"macs": macs[name], **case.times} for name, case in cases.items()}}


def _rows(size: int, found: dict[str, Any]) -> list[dict[str, str]]:
    """A line for end-to-end training, one for each stage, and one for their mean."""
    drawing = medians(found["drawing"])[1]
    costs = {name: _cost(step, drawing) for name, step in found["steps"].items()}
    whole = costs.pop(WHOLE)
    means = {key: statistics.fmean(cost[key] for cost in costs.values()) for key in whole}
    lines = {WHOLE: whole} | {f"stage {name}": cost for name, cost in costs.items()} | {"mean of the stages": means}
    return [{"batch": str(size), "training": name} | _row(cost, whole) for name, cost in lines.items()]


def _cost(step: dict[str, Any], drawing: float) -> dict[str, float]:
    (wall, processor), (_, aligned) = medians(step["plain"]), medians(step["aligned"])
    augmented = banked = processor + drawing
    if "banked" in step:
        banked = medians(step["banked"])[1] + PAIRS / EPOCHS * medians(step["filling"])[1]
    costs = {"wall": wall, "processor": processor, "augmented": augmented, "banked": banked}
    return costs | {"aligned": aligned, "macs": step["macs"]}


def _row(cost: dict[str, float], whole: dict[str, float]) -> dict[str, str]:
    less = {key: f"{whole[key] / cost[key]:.2f}" for key in cost}
    return {
        "wall s": f"{cost['wall']:.3f}",
        "processor s": f"{cost['processor']:.3f}",
        "GMACs": f"{cost['macs'] / 1e9:.1f}",
        "less wall time": less["wall"],
        "less processor time": less["processor"],
        "less MACs": less["macs"],
        "with augmentation": less["augmented"],
        "with bank": less["banked"],
        "alignment": f"{cost['aligned'] / cost['processor']:.3f}",
    }
