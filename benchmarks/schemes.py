"""Quality of each scheme's representation at equal rounds, over seeds: whole runs of ``train.py``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.runs import finish
from fedssl.comparison.grid import GridRun
from fedssl.runs.results import spread
from fedssl.utils.units import MIB

SCHEMES = {"end-to-end": "fedssl", "layer-wise": "lw_fedssl", "progressive": "prog_fedssl"}

DIGITS = """
scikit-learn's handwritten digits, the top-level configurations as they are; mean and standard deviation over
seeds. Random initialisation is the same encoder before training. Last round's value.
Seconds are of two runs at a time on a machine with other work.
"""
FASHION = """
10,000 images of Fashion-MNIST (28x28, grey) over 10 IID clients, the other splits as published; a ViT of 6
blocks, width 96, patch 7; 12 rounds of 2 local epochs, batch 64, SimCLR. kNN and linear probe use all 60,000
labelled training images as the bank and the 10,000 test images. Last round's value.
Seconds are of two runs at a time on a machine with other work.
"""
FASHION_SETTINGS = [
    "--data.dataset=fashion_mnist",
    "--data.image_size=28",
    "--data.train_images=10000",
    "--data.clients=10",
    "--data.eval_batch_size=1000",
    "--model.encoder.image_size=28",
    "--model.encoder.options={patch_size: 7, depth: 6, embed_dim: 96, num_heads: 3, global_pool: avg, "
    "class_token: false, weight_init: moco}",
    "--model.augment=NaturalViews",
    "--model.optimizer.lr=1.0e-3",
    "--model.rounds=12",
    "--model.local_epochs=2",
    "--trainer.check_val_every_n_epoch=25",
]


def add_commands(commands: Any) -> None:
    """Adds ``digits`` and ``fashion_mnist``."""
    for name, settings, notes, seeds in (
        ("digits", [], DIGITS, [0, 1, 2]),
        ("fashion_mnist", FASHION_SETTINGS, FASHION, [0]),
    ):
        parser = commands.add_parser(name, help=" ".join(notes.split())[:80])
        parser.add_argument("--root", default="data", help="folder of the data sets")
        parser.add_argument("--work", default=f"runs/benchmark_{name}", help="folder of the runs")
        parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
        parser.set_defaults(run=run, settings=settings, notes=notes, title=f"Schemes compared on {name}")


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing and writes the table."""
    planned = [
        GridRun(
            config,
            ["-c", f"{config}.yaml", *arguments.settings, f"--data.root={arguments.root}", "--trainer.logger=false"],
            seed,
            Path(arguments.work) / f"{config}-seed{seed}",
        )
        for seed in arguments.seeds
        for config in SCHEMES.values()
    ]
    found = {
        (run.seed, plan.name): run.results for plan, run in zip(planned, finish(planned, arguments.jobs), strict=True)
    }
    runs = {scheme: [found[seed, config] for seed in arguments.seeds] for scheme, config in SCHEMES.items()}
    table = [row("random init", runs["end-to-end"], "random_init_")]
    table += [row(scheme, found) for scheme, found in runs.items()]
    write_record(results, f"schemes_{arguments.name}", arguments.title, table, runs, arguments.notes)


def row(label: str, runs: list[dict[str, Any]], prefix: str = "") -> dict[str, str]:
    """One line of the table."""
    trained = not prefix
    return {
        "scheme": label,
        "kNN top-1 %": spread([run[f"{prefix}knn_top1"] for run in runs]),
        "linear top-1 %": spread([run[f"{prefix}linear_top1"] for run in runs]),
        "received MiB a client": spread([run["down_bytes_per_client"] / MIB for run in runs]) if trained else "",
        "sent MiB a client": spread([run["up_bytes_per_client"] / MIB for run in runs]) if trained else "",
        "GMACs a client": spread([run["macs_per_client"] / 1e9 for run in runs]) if trained else "",
        "peak activation MiB": spread([run["peak_activation_bytes"] / MIB for run in runs]) if trained else "",
        "wall s": spread([run["wall_seconds"] for run in runs]) if trained else "",
    }
