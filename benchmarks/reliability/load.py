"""Load of many clients and rounds: time to the first round, time a round, growth of memory, and the report."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.process_tree import run_measured
from benchmarks.record import write_record
from benchmarks.round_times import ONE_THREAD
from fedssl.runs.report.record import RunRecord
from fedssl.runs.report.run_report import REPORT, write_run_report

MIB = 2**20
IMAGES, SIDE = 50_000, 16
MANY, ROUNDS = (2_000, 10_000), 30
FEW = 100
SETTLED = 0.25
"""Share of the rounds before memory is taken for settled."""
MODEL = (
    "--model.encoder.options={patch_size: 4, depth: 2, embed_dim: 16, num_heads: 2, global_pool: avg}",
    "--model.method.hidden_dim=16",
    "--model.method.output_dim=8",
    "--model.local_epochs=1",
    "--model.participation=10",
)
NOTES = f"""
{IMAGES:,} grey images of {SIDE}x{SIDE} pixels of noise, ten classes, IID; ten clients a round train one epoch in
batches of 64. A ViT of two blocks of width 16, layer-wise, SimCLR; 2,000 labelled and 2,000 test images at the end.
One thread at nice 10. The machine had other work to do while this ran (see the load), so seconds are upper bounds.
*To round 1*: from the command to the end of the first round, start of Python and making of the clients included.
*Peak*: of the proportional set size, in which pages that other processes of the machine map too count in part.
*Slope*: of the resident memory over the rounds, a line fitted from the first quarter of the rounds on.
*After*: from the end of the last round to the end of the process, with evaluation, export and report.
*Report*: processor seconds of the page alone, drawn again from the folder of the run (the first one also
loads fonts).
"""


class RoundMemory(Callback):
    """Notes the time and the resident memory after each round.

    Args:
        file: Where.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self.file.open("a") as rows:
            rows.write(f"{time.time()} {pages * os.sysconf('SC_PAGE_SIZE')}\n")


def add_commands(commands: Any) -> None:
    """``reliability_load``."""
    parser: argparse.ArgumentParser = commands.add_parser("reliability_load", help=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/reliability_load"), help="for data and runs")
    parser.add_argument("--rounds", type=int, default=500, help=f"with {FEW} clients")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures the cases one after the other."""
    os.nice(max(0, 10 - os.nice(0)))
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_noise(arguments.work / "noise.npz")
    load = os.getloadavg()[0]
    found = [measure(clients, ROUNDS, arguments.work) for clients in MANY]
    found.append(measure(FEW, arguments.rounds, arguments.work))
    notes = NOTES + f"Load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after.\n"
    table = [show(case) for case in found]
    write_record(results, "reliability_load", "Many clients, many rounds", table, found, notes)


def write_noise(path: Path) -> None:
    """An npz file of MedMNIST's form."""
    rng = np.random.default_rng(0)
    numbers = {"train": IMAGES, "val": 10, "test": 2_000}
    arrays = {f"{split}_images": rng.integers(0, 256, (n, SIDE, SIDE), np.uint8) for split, n in numbers.items()}
    arrays |= {f"{split}_labels": np.arange(n, dtype=np.uint8)[:, None] % 10 for split, n in numbers.items()}
    np.savez(path, **arrays)


def measure(clients: int, rounds: int, work: Path) -> dict[str, Any]:
    """One run in a process of its own, and its report drawn again in this one."""
    folder, rows = work / f"{clients}", work / f"{clients}.rounds"
    shutil.rmtree(folder, ignore_errors=True)
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from fedssl.__main__ import main; main()", "fit", "-c", "lw_fedssl.yaml", *MODEL]
    command += [f"--model.rounds={rounds}", f"--trainer.check_val_every_n_epoch={rounds}", f"--run_dir={folder}"]
    command += ["--data.dataset=medmnist:noise", f"--data.root={work}", "--data.eval_train_images=2000"]
    command += [f"--data.clients={clients}", "--trainer.logger=false"]
    command += ["--trainer.callbacks+=benchmarks.reliability.load.RoundMemory", f"--trainer.callbacks.file={rows}"]
    began = time.time()
    peak = run_measured(command, work / f"{clients}.log", ONE_THREAD)
    ended = time.time()
    at, memory = np.loadtxt(rows).T
    start = time.process_time()
    write_run_report(RunRecord.read(folder))
    settled = int(SETTLED * rounds)
    return {
        "clients": clients,
        "rounds": rounds,
        "first": at[0] - began,
        "round": statistics.median(np.diff(at)),
        "memory": statistics.median(memory),
        "slope": float(np.polyfit(np.arange(settled, rounds), memory[settled:], 1)[0]),
        "peak": peak,
        "after": ended - at[-1],
        "report": time.process_time() - start,
        "page": (folder / REPORT).stat().st_size,
        "checkpoint": max(path.stat().st_size for path in (folder / "checkpoints").glob("*.ckpt")),
    }


def show(case: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    return {
        "clients": f"{case['clients']:,}",
        "rounds": str(case["rounds"]),
        "to round 1 s": f"{case['first']:.1f}",
        "median round s": f"{case['round']:.2f}",
        "resident MiB": f"{case['memory'] / MIB:.0f}",
        "peak PSS MiB": f"{case['peak'] / MIB:.0f}",
        "slope KiB a round": f"{case['slope'] / 1024:.1f}",
        "after s": f"{case['after']:.1f}",
        "report CPU s": f"{case['report']:.1f}",
        "report MB": f"{case['page'] / 1e6:.2f}",
        "checkpoint KB": f"{case['checkpoint'] / 1e3:.0f}",
    }
