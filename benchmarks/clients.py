"""Cost of idle clients: memory and time of a run with 10 to 1,000 of them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch.optim import AdamW

from benchmarks.record import write_record
from benchmarks.round_times import ONE_THREAD
from fedssl import FederatedData, FederatedSSL
from fedssl.data.datasets import ImageSet
from fedssl.data.images import ClientDatasets
from fedssl.training.checkpoints import AtomicCheckpointIO, RoundCheckpoint
from fedssl.training.tracking import MetricsCSV
from fedssl.utils.resources import peak_process_bytes
from fedssl.utils.seeding import torch_generator
from layerwise import EncoderSpec, LayerWise
from ssl_methods import DigitsViews, SimCLR

IMAGES = 8
COHORT = 10
VIT = {"patch_size": 4, "depth": 2, "embed_dim": 64, "num_heads": 4, "global_pool": "avg", "class_token": False}
NOTES = f"""
Clients of {IMAGES} digits each, drawn with replacement, one local step a round; layer-wise SimCLR, a ViT of 2 blocks;
one thread, checkpoints and CSV each round. The number of local steps is the same in every row: with all clients in each
round there are fewer rounds the more clients there are, with {COHORT} clients a round all rows have equal rounds. Time:
`Trainer.fit`. Memory: peak of the process. Smallest of all repeats. The slope is that of the line through the first and
the last row.
"""


def add_commands(commands: Any) -> None:
    """Adds ``clients``."""
    parser = commands.add_parser("clients", help="memory and time over the number of clients, at equal work")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--steps", type=int, default=2000, help="local steps of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures all sizes in turn, as often as wanted, and writes the table."""
    kinds = {"all": None, f"{COHORT} a round": COHORT}
    data: dict[str, dict[int, list[dict[str, float]]]] = {kind: {n: [] for n in arguments.sizes} for kind in kinds}
    for _ in range(arguments.repeats):
        for kind, cohort in kinds.items():
            for clients in arguments.sizes:
                data[kind][clients].append(_measured(clients, cohort or clients, arguments))
                print(kind, clients, data[kind][clients][-1], flush=True)
    rows = [row for kind, found in data.items() for row in _rows(kind, found)]
    name = "clients" if arguments.accelerator == "cpu" else "gpu_clients"
    write_record(results, name, "Memory and time over the number of clients", rows, data, NOTES)


def _measured(clients: int, cohort: int, arguments: argparse.Namespace) -> dict[str, float]:
    numbers = map(str, (clients, cohort, arguments.steps // cohort))
    command = [sys.executable, "-m", "benchmarks.clients", *numbers, arguments.accelerator]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    return json.loads(done.stdout.splitlines()[-1])


def _rows(kind: str, found: dict[int, list[dict[str, float]]]) -> list[dict[str, str]]:
    best = {n: {key: min(one[key] for one in runs) for key in runs[0]} for n, runs in found.items()}
    first, last = min(best), max(best)
    rows = []
    for clients, each in best.items():
        slope = (best[last]["bytes"] - best[first]["bytes"]) / max(1, last - first)
        rows.append(
            {
                "in a round": kind,
                "clients": f"{clients:,}",
                "seconds": f"{each['seconds']:.2f}",
                "ratio": f"{each['seconds'] / best[first]['seconds']:.3f}",
                "peak MiB": f"{each['bytes'] / 2**20:.1f}",
                "KiB a client": f"{slope / 1024:.1f}" if clients == last else "",
            }
        )
    return rows


class ManyClients(FederatedData):
    """Clients that share the images of a small data set."""

    def _divide(self, pool: ImageSet) -> ClientDatasets:
        draws = torch.randint(len(pool), (self.num_clients, IMAGES), generator=torch_generator(self.seed, "partition"))
        return ClientDatasets([pool.subset(draw) for draw in draws])


def main(clients: int, cohort: int, rounds: int, accelerator: str) -> None:
    """One run, in a process of its own; prints what it needed."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    module = FederatedSSL(
        EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", VIT),
        partial(SimCLR, hidden_dim=128, output_dim=64),
        DigitsViews(),
        partial(AdamW, lr=1e-3),
        LayerWise(),
        rounds,
        participation=cohort,
        seed=0,
    )
    data = ManyClients(dataset="digits", image_size=16, clients=clients, seed=0)
    data.setup("fit")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=rounds,
            accelerator=accelerator,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=MetricsCSV(Path(folder) / "metrics.csv"),
            callbacks=[RoundCheckpoint(Path(folder) / "checkpoints")],
            plugins=[AtomicCheckpointIO()],
        )
        start = time.perf_counter()
        trainer.fit(module, datamodule=data)
        print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak_process_bytes()}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), accelerator=sys.argv[4])
