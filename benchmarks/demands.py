"""What a local step of caff.yaml takes, for every number of trained last layers and every rank of adapters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from fedssl.comparison.measures import MIB
from fedssl.messages import num_bytes
from fedssl.model import SplitModel, build_model
from fedssl.planning.forecast import batches_of_epoch
from fedssl.planning.prediction import StepPredictor
from layerwise import EncoderSpec, LastLayers, LoRA, Scheme, Stage, tensor_bytes
from ssl_methods import DigitsViews, Supervised

DEPTH, RANKS, BATCH, EPOCHS = 6, [1, 2, 4, 8], 32, 2
IMAGES = 160
"""Of each client: digits over nine of them, 1,438 in all."""
VIT = EncoderSpec(
    "vit_tiny_patch16_224",
    16,
    1,
    options={"patch_size": 4, "embed_dim": 64, "num_heads": 4, "global_pool": "avg", "class_token": False}
    | {"depth": DEPTH, "weight_init": "moco"},
)


@dataclass(frozen=True)
class Demand:
    """One configuration.

    Args:
        depth: Blocks of the network.
        trained: Last blocks that are trained; 0 with adapters.
        rank: Of adapters; 0 without.
        predicted: Bytes of the step's peak, as planned.
        measured: Bytes of the step's peak, as allocated; 0: not measured.
        activations: Bytes that autograd keeps.
        step_macs: Multiply-accumulates of the step.
        upload: Bytes sent in a round.
        macs: Multiply-accumulates of a round.
    """

    depth: int
    trained: int
    rank: int
    predicted: int
    measured: int
    activations: int
    step_macs: int
    upload: int
    macs: int

    def amount(self, quantity: str) -> int:
        """What a limit of a device is compared with, by its key."""
        return {"memory": self.predicted, "upload_limit": self.upload, "macs_limit": self.macs}[quantity]

    def row(self) -> dict[str, str]:
        """For the table."""
        off = f"{100 * (self.predicted / self.measured - 1):+.1f}"
        return {
            "layers": str(self.depth),
            "trained": f"rank {self.rank}" if self.rank else f"last {self.trained}",
            "predicted peak MiB": f"{self.predicted / MIB:.2f}",
            "measured peak MiB": f"{self.measured / MIB:.2f}",
            "off by %": off,
            "activations MiB": f"{self.activations / MIB:.2f}",
            "MMACs": f"{self.step_macs / 1e6:.1f}",
            "sent MiB": f"{self.upload / MIB:.3f}",
        }


def demands(measured: bool) -> list[Demand]:
    """Every depth with every number of trained layers, then every rank at full depth."""
    last, lora = LastLayers(list(range(1, DEPTH + 1))), LoRA(RANKS)
    choices = [choice for *_, stage in last.variants(DEPTH, 1) for choice in last.choices(stage)]
    found = _of(last, [(choice, 0) for choice in choices], measured)
    ranks = zip(lora.variants(DEPTH, 1), RANKS, strict=True)
    return found + _of(lora, [(stage, rank) for (stage,), rank in ranks], measured)


def _of(scheme: Scheme, stages: list[tuple[Stage, int]], measured: bool) -> list[Demand]:
    optimizer = partial(AdamW, lr=1e-3, weight_decay=1e-3)
    method = partial(Supervised, num_classes=10, standardize=True)
    model = build_model(scheme.adapt(VIT), method, DigitsViews(), optimizer, 0)
    predictor = StepPredictor(model, None, 0.0)
    return [_demand(model, predictor, stage, rank, measured) for stage, rank in stages]


def _demand(model: SplitModel, predictor: StepPredictor, stage: Stage, rank: int, measured: bool) -> Demand:
    step = predictor(stage, BATCH)
    macs = EPOCHS * sum(n * predictor(stage, size).macs for size, n in batches_of_epoch(IMAGES, BATCH).items())
    upload = num_bytes(model.read(model.trained_names(stage)))
    peak = measured_peak(model, stage) if measured else 0
    trained = 0 if rank else len(stage.trained)
    return Demand(stage.depth, trained, rank, step.peak, peak, step.activations, step.macs, upload, macs)


def measured_peak(model: SplitModel, stage: Stage) -> int:
    """Bytes of parameters, optimizer state and images, and the most that the allocator adds to them in a step."""
    model.attach(stage)
    method, optimizer = model.method, model.method.configure_optimizers()
    inputs = (torch.randn(BATCH, 1, 16, 16), torch.arange(BATCH) % 10)

    def step() -> None:
        method.loss_of(inputs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    modules = (method.prefix, method.backbone, *method.heads().values())
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return tensor_bytes([*own, *states, *inputs]) + peak
