"""A hundred small clients: this project beside a plain Flower app and beside a Lightning Trainer for each client."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.flower import SIMULATION
from benchmarks.peer_job import CLIENTS, EPOCHS, ROUNDS
from benchmarks.record import write_record
from benchmarks.round_times import Measured, measure
from fedssl.utils.files import write_atomically

MIB = 2**20
OURS = "fedssl, one process"
NOTES = f"""
Digits over {CLIENTS} IID clients of 14 or 15 images, all of them in each round, {EPOCHS} local epochs of one step, the
model and optimizer of `fedssl.yaml`, end-to-end; one thread a process. `fedssl`: `train.py fit` with checkpoints and
CSV. Lightning: `benchmarks/peer_lightning.py`, a barebones Trainer for each client around one resident module, images
in memory. Flower: `benchmarks/peer_flower.py`, a plain ClientApp and FedAvg in its simulation (Ray, an actor for each
core), model and images once in an actor. The systems take turns; seconds are medians of rounds 2 to {ROUNDS} of
all turns. Memory: largest sum of the proportional set sizes of all processes; that of `fedssl` has the evaluation at
the run's end. Start: from the command to the first round, mean.
"""


def add_commands(commands: Any) -> None:
    """Adds ``peers``."""
    parser = commands.add_parser("peers", help="a plain Flower app and a Trainer for each client, same work")
    parser.add_argument("--work", default="runs/benchmark_peers", help="folder of the runs")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2, help="processes of Flower's simulation, and of our second row")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Measures what has not been measured yet, and writes the table."""
    found: dict[str, list[Measured]] = {}
    for turn in range(arguments.turns):
        for name in _commands(Path(), arguments.cores):
            found.setdefault(name, []).append(_measured(name, Path(arguments.work) / str(turn), arguments.cores))
    data = {name: [each.as_dict() for each in turns] for name, turns in found.items()}
    ours = _seconds(found[OURS])
    rows = [_row(name, turns, ours) for name, turns in found.items()]
    write_record(results, "peers", "A hundred small clients, beside peers", rows, data, NOTES)


def _measured(name: str, folder: Path, cores: int) -> Measured:
    stem = "".join(letter for letter in name if letter.isalnum())
    file = folder / f"{stem}.json"
    if not file.exists():
        work = (folder / stem).absolute()
        shutil.rmtree(work, ignore_errors=True)
        measured = measure([sys.executable, *_commands(work, cores)[name]], work, SIMULATION)
        write_atomically(file, lambda path: path.write_text(json.dumps(measured.as_dict())))
        print(name, measured, flush=True)
    return Measured(**json.loads(file.read_text()))


def _commands(work: Path, cores: int) -> dict[str, list[str]]:
    times = work / "times"
    fit = ["train.py", "fit", "-c", "fedssl.yaml", f"--data.clients={CLIENTS}", f"--model.rounds={ROUNDS}"]
    fit += [f"--model.local_epochs={EPOCHS}", "--trainer.check_val_every_n_epoch=1000", "--trainer.logger=false"]
    fit += ["--trainer.callbacks+=benchmarks.round_times.RoundTimes", f"--trainer.callbacks.file={times}"]
    fit += [f"--run_dir={work / 'run'}"]
    return {
        OURS: fit,
        "Lightning Trainer for each client": ["-m", "benchmarks.peer_lightning", str(times)],
        "Flower's simulation": ["-m", "benchmarks.peer_flower", str(times), str(cores)],
        f"fedssl, {cores} processes": [*fit, f"--trainer.devices={cores}"],
    }


def _seconds(turns: list[Measured]) -> float:
    return statistics.median(seconds for each in turns for seconds in each.later)


def _row(name: str, turns: list[Measured], ours: float) -> dict[str, str]:
    return {
        "system": name,
        "s a round": f"{_seconds(turns):.2f}",
        "ratio": f"{_seconds(turns) / ours:.2f}",
        "first round s": f"{statistics.mean(each.first for each in turns):.2f}",
        "start s": f"{statistics.mean(each.startup for each in turns):.1f}",
        "peak MiB": f"{max(each.peak_bytes for each in turns) / MIB:,.0f}",
    }
