"""Overhead of the federation: ``fit`` against a bare PyTorch loop with the same local steps."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch.optim import AdamW

from benchmarks.record import write_record
from fedssl import FederatedData, FederatedSSL
from fedssl.training.checkpoints import AtomicCheckpointIO, RoundCheckpoint
from fedssl.training.progress import RoundProgress
from fedssl.training.tracking import MetricsCSV
from layerwise import EncoderSpec, EndToEnd, LayerWise, Scheme, Stage, build_encoder, split_encoder
from ssl_methods import DigitsViews, MoCoV3, NaturalViews, SimCLR

NOTES = """
Wall time of `Trainer.fit` with checkpoints and CSV logging over the same local steps in a bare loop (one resident
model, the same augmentation, method and AdamW, no server, no messages, no Lightning). Interleaved; the ratio is the
median over pairs. Data are in memory; evaluation is left out on both sides.
"""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    spec: EncoderSpec
    method: Any
    views: Any
    scheme: Scheme
    rounds: int
    clients: int
    images: int
    local_epochs: int


SMALL = {
    "patch_size": 4,
    "depth": 6,
    "embed_dim": 64,
    "num_heads": 4,
    "global_pool": "avg",
    "class_token": False,
}
CASES = [
    Case(
        "digits default, layer-wise",
        EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", SMALL),
        partial(SimCLR, hidden_dim=256, output_dim=128),
        DigitsViews(),
        LayerWise(),
        rounds=12,
        clients=6,
        images=1438,
        local_epochs=3,
    ),
    Case(
        "ViT-Tiny, batch 64, end-to-end",
        EncoderSpec("vit_tiny_patch16_224", 32, 3, "learned", {"patch_size": 4}),
        MoCoV3,
        NaturalViews(),
        EndToEnd(),
        rounds=1,
        clients=2,
        images=256,
        local_epochs=1,
    ),
]


def add_commands(commands: Any) -> None:
    """Adds ``overhead``."""
    parser = commands.add_parser("overhead", help="fit against a bare loop")
    parser.add_argument("--pairs", type=int, default=5)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures every case and writes the table."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data, table = {}, []
    for case in CASES:
        pairs = [measure(case, results / ".work") for _ in range(arguments.pairs + 1)][1:]
        ratio = statistics.median(fit / bare for fit, bare in pairs)
        fit_s, bare_s = (statistics.median(side) for side in zip(*pairs, strict=True))
        data[case.name] = {"pairs": pairs, "ratio": ratio}
        table.append({"case": case.name, "fit s": f"{fit_s:.2f}", "bare s": f"{bare_s:.2f}", "ratio": f"{ratio:.3f}"})
    write_record(results, "overhead", "Overhead of fit over a bare loop", table, data, NOTES)


def measure(case: Case, work: Path) -> tuple[float, float]:
    """Seconds of one fit and of one bare loop."""
    return _timed(lambda: _fit(case, work)), _timed(lambda: _bare(case))


def _data(case: Case) -> FederatedData:
    data = FederatedData(
        clients=case.clients,
        dataset="digits",
        image_size=case.spec.image_size,
        channels=case.spec.in_channels,
        train_images=case.images,
        seed=0,
    )
    data.setup("fit")
    return data


def _fit(case: Case, work: Path) -> Any:
    data = _data(case)
    module = FederatedSSL(
        case.spec,
        case.method,
        case.views,
        partial(AdamW, lr=1e-3),
        case.scheme,
        case.rounds,
        local_epochs=case.local_epochs,
        seed=0,
    )
    checkpoint = RoundCheckpoint(work / "checkpoints")
    trainer = Trainer(
        max_epochs=case.rounds,
        accelerator="cpu",
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        logger=MetricsCSV(work / "metrics.csv"),
        callbacks=[checkpoint, RoundProgress()],
        plugins=[AtomicCheckpointIO()],
    )
    return lambda: trainer.fit(module, datamodule=data)


def _bare(case: Case) -> Any:
    clients = [client.gather(torch.arange(len(client))) for client in _data(case).datasets.clients]
    encoder = build_encoder(case.spec, 0)
    method = case.method(encoder, encoder.feature_dim, case.views, partial(AdamW, lr=1e-3))
    method.generator = torch.Generator().manual_seed(0)
    stages = case.scheme.stages(len(encoder.blocks), case.rounds)

    def loop() -> None:
        for stage in stages:
            method.attach(*split_encoder(encoder, stage))
            for _ in range(stage.rounds):
                for images in clients:
                    _train(method, images, case.local_epochs, stage)

    return loop


def _train(method: Any, images: torch.Tensor, epochs: int, stage: Stage) -> None:
    method.begin_client()
    optimizer = method.configure_optimizers()
    for _ in range(epochs):
        for chunk in torch.randperm(len(images)).split(64):
            loss = method.training_step(images[chunk])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step()


def _timed(prepare: Any) -> float:
    work = prepare()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
