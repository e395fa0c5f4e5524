"""Start-up time: the wait for the help, for a plan, and for the first round of a run."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pytorch_lightning import Callback

from benchmarks.record import write_record

ROOT = Path(__file__).parent.parent
NOTES = """
Separate processes, one after the other in turn; medians. Processor seconds (user and system, all threads) bear other
work on the machine, wall seconds do not: where they differ much the machine was busy. No program on top of torch and
Lightning can fall below their imports, unless it does without. The last two rows are the time from the end of the
imports to the first round of `lw_fedssl.yaml` on 50,000 images of 32x32 pixels that are read from an `npz` file and
held in memory. `train.py` imports without garbage collection, the third row with.
"""
IMAGES = 50_000
PLAN = ["plan", "-c", "paper/lw_fedssl_v3.yaml", "--images_per_client", "500"]
PROCESSES = {
    "import torch": ["-c", "import torch"],
    "import pytorch_lightning": ["-c", "import pytorch_lightning"],
    "import fedssl.__main__": ["-c", "import fedssl.__main__"],
    "train.py --help": ["train.py", "--help"],
    "train.py fit --help": ["train.py", "fit", "--help"],
    "train.py plan, ViT-Tiny of 12 blocks": ["train.py", *PLAN],
}
FIRST_ROUND = "import sys, benchmarks.startup as startup; startup.start(sys.argv[1:])"
SETTINGS = [
    "--data.dataset=medmnist:noise",
    "--data.image_size=32",
    "--model.encoder.image_size=32",
    "--model.encoder.in_channels=3",
    "--model.augment=NaturalViews",
    "--trainer.callbacks=benchmarks.startup.FirstRound",
]


class FirstRound(Callback):
    """Ends the program where the first round would begin; prints wall and processor seconds since ``began``."""

    began = (0.0, 0.0)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lightning's hook."""
        print(time.perf_counter() - self.began[0], time.process_time() - self.began[1])
        sys.exit()


def start(arguments: list[str]) -> None:
    """Runs the command line; the clock starts when it has been imported."""
    from fedssl.__main__ import main

    FirstRound.began = (time.perf_counter(), time.process_time())
    main(arguments)


def add_commands(commands: Any) -> None:
    """Adds ``startup``."""
    parser = commands.add_parser("startup", help="seconds before help, a plan and the first round")
    parser.add_argument("--repeats", type=int, default=7)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures everything in turn and writes the table."""
    seconds: dict[str, list[tuple[float, float]]] = {}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_noise(folder / "noise.npz")
        for turn in range(arguments.repeats + 1):
            for name, command in PROCESSES.items():
                seconds.setdefault(name, []).append(_process(command))
            for name, settings in (("with W&B", []), ("without W&B", ["--trainer.logger=false"])):
                found = _first_round(folder, f"{turn} {name}", settings)
                seconds.setdefault(f"first round, {name}", []).append(found)
    seconds = {name: found[1:] for name, found in seconds.items()}  # the first turn fills the disk's cache
    table = [_row(name, *zip(*found, strict=True)) for name, found in seconds.items()]
    write_record(results, "startup", "Start-up", table, seconds, NOTES)


def _row(name: str, walls: tuple[float, ...], processors: tuple[float, ...]) -> dict[str, str]:
    wall, processor = statistics.median(walls), statistics.median(processors)
    return {"what": name, "wall s": f"{wall:.2f}", "least": f"{min(walls):.2f}", "processor s": f"{processor:.2f}"}


def _process(command: list[str]) -> tuple[float, float]:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _first_round(folder: Path, name: str, settings: list[str]) -> tuple[float, float]:
    fit = ["fit", "-c", "lw_fedssl.yaml", f"--data.root={folder}", f"--run_dir={folder / name}", *SETTINGS, *settings]
    environment = os.environ | {"WANDB_MODE": "offline"}
    command = [sys.executable, "-c", FIRST_ROUND, *fit]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    wall, processor = map(float, done.stdout.split()[-2:])
    return wall, processor


def _write_noise(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, images in (("train", IMAGES), ("test", IMAGES // 5)):
        arrays[f"{split}_images"] = rng.integers(256, size=(images, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(10, size=(images, 1), dtype=np.uint8)
    np.savez(path, **arrays)
