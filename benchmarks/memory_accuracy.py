"""Memory budgets: their effect on the accuracy of a federation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import neighbours

ACCURACY_NOTES = """
Digits: `configs/fedhybrid.yaml` (a ViT of 6 blocks, end-to-end) at 24 rounds. First rows: all clients, no devices;
"4 bits" keeps all activations in 4 bits wherever that lowers the peak, and recomputes nothing.
Fleet: two clients each with 33, 66 and 100 % of the memory that training takes, three clients a round, Dirichlet(0.5);
images: those of the clients that can take part. CIFAR-10: 10,000 images over 10 IID clients, a ViT of 6 blocks, width
64, patch 8, end-to-end MoCo v3, 8 rounds of one local epoch, batch 128; the bank of kNN and linear probe are 50,000
labelled images. Mean and standard deviation over seeds, last round's value.
"""
DATA = ["--data.partition=Dirichlet", "--data.partition.beta=0.5", "--model.rounds=24"]
ALONE = ["--model.devices=null", "--model.selector=null", "--model.participation=1.0", "--model.rounds=24"]
RANDOM = "--model.selector=RandomSelector"
CIFAR = [
    *ALONE[:-1],
    "--data.dataset=cifar10",
    "--data.image_size=32",
    "--data.channels=3",
    "--data.train_images=10000",
    "--data.clients=10",
    "--data.eval_batch_size=1000",
    "--model.encoder.image_size=32",
    "--model.encoder.in_channels=3",
    "--model.encoder.options.patch_size=8",
    "--model.method=MoCoV3",
    "--model.method.hidden_dim=256",
    "--model.method.output_dim=128",
    "--model.augment=NaturalViews",
    "--model.optimizer.lr=1.0e-3",
    "--model.rounds=8",
    "--model.local_epochs=1",
    "--model.batch_size=128",
    "--trainer.check_val_every_n_epoch=25",
]
RUNS: neighbours.Runs = {
    "no budget": ("fedhybrid", [*ALONE, "--model.memory_budget=null"]),
    "4 bits": ("fedhybrid", [*ALONE, "--model.memory_budget=4 bits"]),
    "fleet, FedHybrid": ("fedhybrid", DATA),
    "fleet, memory plans, random clients": ("fedhybrid", [*DATA, RANDOM]),
    "fleet, small devices dropped": ("fedhybrid", [*DATA, RANDOM, "--model.memory_budget=null"]),
    "CIFAR-10, no budget": ("fedhybrid", [*CIFAR, "--model.memory_budget=null"]),
    "CIFAR-10, 4 bits": ("fedhybrid", [*CIFAR, "--model.memory_budget=4 bits"]),
}


def add_commands(commands: Any) -> None:
    """Adds ``memory_accuracy``."""
    parser = commands.add_parser("memory_accuracy", help="accuracy on digits and CIFAR-10 inside memory budgets")
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--work", default="runs/benchmark_memory_accuracy", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="SYSTEM")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.set_defaults(run=run, title="Accuracy inside memory budgets", notes=ACCURACY_NOTES)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing and writes the table."""
    root = f"--data.root={arguments.root}"
    arguments.runs = {label: (config, [*settings, root]) for label, (config, settings) in RUNS.items()}
    neighbours.run(arguments, results)
