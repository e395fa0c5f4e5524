"""A GPU: local steps of every stage beside its peak, what options cost, memory against plan, and lightly's pipeline.

On a machine with a card, one line does all of it::

    python -m pytest -q tests && python -m benchmarks.run gpu && python -m benchmarks.run clients --accelerator gpu \
        && python -m benchmarks.run peers --cores 16

``--dry`` takes the same way on the CPU, with sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import write_record
from fedssl.client.local_step import take_step
from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.parts import PartitionedModel, build_model
from fedssl.utils.resources import Stopwatch
from layerwise import EncoderSpec, EndToEnd, LayerWise, Stage
from ssl_methods import MoCoV3, NaturalViews, SimCLR

VIT = EncoderSpec("vit_tiny_patch16_224", 32, 3, "learned", {"patch_size": 4})
RESNET = EncoderSpec("resnet18", 32, 3, stem="small")
NETWORKS = {"ViT-Tiny": VIT, "ResNet-18": RESNET}
SMALL = {
    "ViT-Tiny": replace(VIT, options={"patch_size": 16, "depth": 2, "embed_dim": 16, "num_heads": 2}),
    "ResNet-18": replace(RESNET, options={"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}),
}
"""Networks of the dry run."""

NOTES = {
    "steps": """
MoCo v3 with AdamW, images of 32x32 that lie on the card as uint8, two views drawn there, bf16. A step is augmentation,
loss, backward, optimizer and momentum target, as clients take it. Peak: matrix products of {side} x {side} in the
same type. FLOP/s: twice the counted multiply-accumulates of a step over its time. Busy: seconds of kernels over wall
seconds, by torch's profiler. Planned: what `plan` predicts for a step; peak: most bytes that PyTorch had allocated.
""",
    "options": """
A local step as in `gpu_steps`, with one option at a time; ratio: images a second over those of fp32 without options.
Compiled: `torch.compile` of the active part and of the frozen prefix, its first step left out.
""",
    "lightly": """
End-to-end SimCLR of the same backbone, in bf16: fedssl's batched views on the card, and lightly's transforms on PIL
images in DataLoader workers with lightly's loss. Images a second of a whole epoch, data loading included.
""",
}


@dataclass(frozen=True)
class Setting:
    """How a step is taken.

    Args:
        bf16: In mixed precision.
        fused: AdamW in one kernel.
        channels_last: Layout of images and convolutions.
        tf32: Matrix products of fp32 in the tensor cores.
        compiled: Active part and prefix by ``torch.compile``.
    """

    bf16: bool = False
    fused: bool = False
    channels_last: bool = False
    tf32: bool = False
    compiled: bool = False


BEST = Setting(bf16=True, fused=True, channels_last=True)
OPTIONS = {
    "fp32": Setting(),
    "tf32": Setting(tf32=True),
    "bf16": Setting(bf16=True),
    "bf16, fused AdamW": Setting(bf16=True, fused=True),
    "bf16, channels last": Setting(bf16=True, channels_last=True),
    "bf16, fused, channels last": BEST,
    "bf16, fused, channels last, compiled": replace(BEST, compiled=True),
}


def add_commands(commands: Any) -> None:
    """Adds ``gpu``."""
    parser = commands.add_parser("gpu", help="steps, options, memory and lightly's pipeline on a GPU")
    parser.add_argument("--parts", nargs="+", choices=list(NOTES), default=list(NOTES))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=16, help="of lightly's DataLoader")
    parser.add_argument("--dry", action="store_true", help="on the CPU, small; results go to runs/")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures and writes a record for each part."""
    if arguments.dry:
        arguments.batch, arguments.steps, arguments.workers, results = 8, 2, 1, Path("runs") / "benchmark_gpu"
    elif not torch.cuda.is_available():
        raise SystemExit("error: there is no GPU here; --dry shows what would be measured")
    card = Card(torch.device("cpu" if arguments.dry else "cuda"), arguments.batch, arguments.steps)
    parts: dict[str, Callable[[], list[dict[str, str]]]] = {
        "steps": lambda: list(_steps(card)),
        "options": lambda: list(_options(card)),
        "lightly": lambda: list(_lightly(card, arguments.workers)),
    }
    for name in arguments.parts:
        rows = parts[name]()
        notes = NOTES[name].format(side=card.side)
        write_record(results, f"gpu_{name}", f"On a GPU: {name}, batch {card.batch}", rows, rows, notes)
        print(*rows, sep="\n", flush=True)


@dataclass(frozen=True)
class Card:
    """Device under test, and how much is asked of it."""

    device: torch.device
    batch: int
    steps: int

    @property
    def dry(self) -> bool:
        """Whether it is the CPU, where nothing is of interest but that it runs."""
        return self.device.type == "cpu"

    @property
    def side(self) -> int:
        """Rows of the matrices whose product is the peak."""
        return 64 if self.dry else 8192

    @property
    def networks(self) -> dict[str, EncoderSpec]:
        """Networks to train."""
        return SMALL if self.dry else NETWORKS

    def seconds(self, work: Callable[[], Any]) -> float:
        """Median seconds of a call, after three that are not counted."""
        times = []
        for repeat in range(self.steps + 3):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            if repeat >= 3:
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        """Lets queued work end."""
        if not self.dry:
            torch.cuda.synchronize()

    def peak_flops(self, kind: torch.dtype) -> float:
        """Multiplications and additions a second of a large matrix product."""
        first, second = (torch.randn(self.side, self.side, device=self.device, dtype=kind) for _ in range(2))
        return 2 * self.side**3 / self.seconds(lambda: first @ second)

    def busy(self, work: Callable[[], Any]) -> float:
        """Share of the time in which kernels run."""
        if self.dry:
            return 1.0
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            start = time.perf_counter()
            for _ in range(10):
                work()
            self.wait()
            wall = time.perf_counter() - start
        return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / wall


class Steps:
    """Local steps of a stage."""

    def __init__(self, card: Card, spec: EncoderSpec, stage: Stage, setting: Setting, method: Any = MoCoV3) -> None:
        self.card, self.setting, self.stage = card, setting, stage
        self.spec = replace(spec, channels_last=setting.channels_last and spec.name == RESNET.name)
        self.model = self._model(method).to(card.device)
        self.model.attach(stage)
        own = self.model.method
        own.generator = torch.Generator(card.device).manual_seed(0)
        own.begin_client()
        if setting.compiled:
            own.backbone, own.prefix = torch.compile(own.backbone), _compiled(own.prefix)
        self.optimizer: Any = own.configure_optimizers()
        self.images = torch.randint(0, 256, (4 * card.batch, 3, 32, 32), dtype=torch.uint8, device=card.device)
        self.labels = torch.zeros(card.batch, dtype=torch.int64, device=card.device)
        self.taken = 0

    def __call__(self) -> None:
        """Takes a step on the next images."""
        at = self.taken % 4 * self.card.batch
        self.taken += 1
        views = self.model.method.inputs(self.images[at : at + self.card.batch], self.labels)
        with self._autocast():
            take_step(self.model.method, self.optimizer, views, Stopwatch())

    def images_a_second(self) -> float:
        """Images a second, views included."""
        torch.set_float32_matmul_precision("high" if self.setting.tf32 else "highest")
        return self.card.batch / self.card.seconds(self)

    def predicted(self) -> Any:
        """What ``plan`` says of the step."""
        return StepPredictor(self._model(MoCoV3)).run(self.stage, self.card.batch)

    def allocated(self) -> int:
        """Most bytes that PyTorch had allocated in a step."""
        if self.card.dry:
            return 0
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated()

    def _model(self, method: Any) -> PartitionedModel:
        optimizer = partial(AdamW, lr=1e-3, fused=self.setting.fused)
        return build_model(self.spec, method, NaturalViews(), optimizer, 0)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.card.device.type, torch.bfloat16) if self.setting.bf16 else nullcontext()


def _compiled(prefix: nn.Module) -> nn.Module:
    return torch.compile(prefix) if list(prefix.parameters()) else prefix


def _steps(card: Card) -> Iterator[dict[str, str]]:
    peak = card.peak_flops(torch.bfloat16)
    for name, spec in card.networks.items():
        for kind, stage in _stages(card, spec).items():
            steps = Steps(card, spec, stage, BEST)
            rate, foretold = steps.images_a_second(), steps.predicted()
            flops = 2 * foretold.macs * rate / card.batch
            yield {
                "network": name,
                "training": kind,
                "images/s": f"{rate:,.0f}",
                "ms a step": f"{1000 * card.batch / rate:.2f}",
                "busy": f"{card.busy(steps):.0%}",
                "TFLOP/s": f"{flops / 1e12:.3g}",
                "of the peak": f"{flops / peak:.1%}",
                "peak TFLOP/s": f"{peak / 1e12:.3g}",
                "peak MiB": f"{steps.allocated() / 2**20:,.0f}",
                "planned MiB": f"{foretold.peak / 2**20:,.0f}",
            }


def _stages(card: Card, spec: EncoderSpec) -> dict[str, Stage]:
    """End-to-end training, and the layer-wise stages."""
    blocks = len(build_model(spec, SimCLR, NaturalViews(), partial(AdamW, lr=1e-3), 0).encoder.blocks)
    layer_wise = LayerWise().stages(blocks, blocks)
    return {"end-to-end": EndToEnd().stages(blocks, 1)[0]} | {f"stage {stage.index + 1}": stage for stage in layer_wise}


def _options(card: Card) -> Iterator[dict[str, str]]:
    for name, spec in card.networks.items():
        whole = _stages(card, spec)["end-to-end"]
        rates: dict[str, float] = {}
        for option, setting in OPTIONS.items():
            if setting.compiled and card.dry:
                continue  # the CPU's compiler takes minutes
            rates[option] = Steps(card, spec, whole, setting).images_a_second()
            ratio = f"{rates[option] / rates['fp32']:.2f}"
            yield {"network": name, "option": option, "images/s": f"{rates[option]:,.0f}", "ratio": ratio}


def _lightly(card: Card, workers: int) -> Iterator[dict[str, str]]:
    for name, spec in card.networks.items():
        steps = Steps(card, spec, _stages(card, spec)["end-to-end"], BEST, SimCLR)
        ours, theirs = steps.images_a_second(), _lightly_images_a_second(card, steps, workers)
        yield {
            "network": name,
            "fedssl images/s": f"{ours:,.0f}",
            f"lightly images/s, {workers} workers": f"{theirs:,.0f}",
            "ratio": f"{ours / theirs:.1f}",
        }


def _lightly_images_a_second(card: Card, like: Steps, workers: int) -> float:
    """Images a second of a loop as in lightly's documents, with the same backbone and head."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from torch.utils.data import DataLoader, TensorDataset
    from torchvision.transforms.functional import to_pil_image

    method: Any = like._model(SimCLR).method
    network = nn.Sequential(method.backbone, method.projector).to(card.device)
    loss_of, optimizer = NTXentLoss(), AdamW(network.parameters(), lr=1e-3, fused=not card.dry)
    images = [to_pil_image(image) for image in like.images.cpu()]
    transform = SimCLRTransform(input_size=32)

    def collate(rows: list[tuple[Tensor]]) -> list[Tensor]:
        pairs = [transform(images[int(row)]) for (row,) in rows]
        return [torch.stack([pair[view] for pair in pairs]) for view in range(2)]

    loader = DataLoader(
        TensorDataset(torch.arange(len(images)).repeat(1 if card.dry else 8)),
        card.batch,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
        pin_memory=not card.dry,
    )

    def epoch() -> None:
        for views in loader:
            with torch.autocast(card.device.type, torch.bfloat16):
                first, second = (network(view.to(card.device, non_blocking=True)) for view in views)
                loss = loss_of(first, second)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    epoch()  # starts the workers
    card.wait()
    start = time.perf_counter()
    epoch()
    card.wait()
    return len(loader.dataset) / (time.perf_counter() - start)
