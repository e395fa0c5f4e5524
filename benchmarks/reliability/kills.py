"""Runs that are killed again and again, and must end as if nothing had happened."""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import write_record
from benchmarks.reliability.tiny_run import CLIENTS, HEADS, QUIET, VIT, same, start
from fedssl.training.checkpoints import read_checkpoint

NOTES = """
Each chain is a run that is killed (SIGKILL) and resumed with `--ckpt_path last`, again and again, beside the same run
left alone. Half of the kills come at a random time of the training, half up to 20 ms after the temporary file of a
checkpoint appeared. Equal: weights, optimizer, server and clients of the last checkpoint bit for bit; every row of
`metrics.csv` without wall-clock times and process memory; and `results.json` without those.
"""
RESNET = "--model.encoder.options={channels: [8, 8, 16, 16]}"
SMART = [RESNET, *CLIENTS, *QUIET, "--data.clients=4", "--model.participation=2", "--model.rounds=24"]
LAYERWISE = [VIT, *HEADS, *CLIENTS, *QUIET, "--model.rounds=40"]
MOMENTUM = ["--model.server_optimizer=torch.optim.SGD", "--model.server_optimizer.lr=1.0"]
SCENARIOS = {
    "SmartFreeze: random devices, selector, pace": ["-c", "smartfreeze.yaml", *SMART],
    "layer-wise, calibration, MOON, momentum, dropout": [
        *["-c", "lw_fedssl.yaml", *LAYERWISE, *MOMENTUM, "--model.server_optimizer.momentum=0.5"],
        *["--model.calibration.epochs=1", "--model.alignment=MoonAlignment", "--data.auxiliary_fraction=0.2"],
        "--model.dropout=0.2",
    ],
    "end to end, FedEMA": ["-c", "fedssl.yaml", *LAYERWISE, "--model.method=BYOL", "--model.start=fedssl.FedEMA"],
    "FedHybrid": ["-c", "fedhybrid.yaml", *LAYERWISE, "--data.clients=6", "--model.rounds=12"],
    "centralised": [
        *["-c", "centralized.yaml", VIT, *HEADS, *QUIET, "--data.train_images=60", "--data.batch_size=8"],
        "--trainer.max_epochs=40",
    ],
}
UNLIKE = re.compile(r"time/(?!simulated)|cost/process_peak_bytes")
MEASURED = ("wall_seconds", "seconds", "process_peak_bytes")


def add_commands(commands: Any) -> None:
    """Adds ``reliability_kills``."""
    parser = commands.add_parser("reliability_kills", help="chains of kill -9 and resume")
    parser.add_argument("--kills", type=int, default=4, help="of each chain")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Kills every scenario and writes the table."""
    table = []
    for name, settings in SCENARIOS.items():
        with TemporaryDirectory() as scratch:
            table.append({"chain": name} | _chain(Path(scratch), settings, arguments.kills))
            print(table[-1])
    write_record(results, "reliability_kills", "Runs that are killed", table, table, NOTES)


def _chain(scratch: Path, settings: list[str], kills: int) -> dict[str, Any]:
    whole, killed = scratch / "whole", scratch / "killed"
    begun = time.monotonic()
    _end(start([*settings, f"--run_dir={whole}"]))
    draw, done, at_write = random.Random(0), 0, 0
    seconds = time.monotonic() - begun
    for number in range(kills):
        resume = ["--ckpt_path=last"] if list((killed / "checkpoints").glob("*.ckpt")) else []
        process = start([*settings, f"--run_dir={killed}", *resume])
        while process.poll() is None and not list((killed / "checkpoints").glob("*.ckpt")):
            time.sleep(0.001)
        if number % 2:
            time.sleep(draw.uniform(0, seconds / 2))
        else:
            at_write += _wait_for_temporary(killed / "checkpoints", process)
            time.sleep(draw.uniform(0, 0.02))
        done += process.poll() is None
        process.kill()
        process.communicate()
        if (killed / "results.json").exists():
            break
    _end(start([*settings, f"--run_dir={killed}", "--ckpt_path=last"]))
    ends = [_last(folder) for folder in (whole, killed)]
    left = [path.name for path in (killed / "checkpoints").iterdir()]
    rows = [_rows(folder) for folder in (whole, killed)]
    return {
        "kills": done,
        "at a write": at_write,
        "last checkpoint": _equal(same(*ends)),
        "metrics.csv": f"{len(rows[1])} of {len(rows[0])} rows, {_equal(rows[0] == rows[1])}",
        "results.json": _equal(_results(whole) == _results(killed)),
        "checkpoints left": sum(name.endswith(".ckpt") for name in left),
        "temporary files left": sum(name.endswith(".tmp") for name in left),
    }


def _wait_for_temporary(folder: Path, process: Any) -> bool:
    while process.poll() is None:
        if list(folder.glob(".*.tmp")):
            return True
    return False


def _end(process: Any) -> None:
    said = process.communicate()[0]
    assert process.returncode == 0, said[-2000:]


def _last(folder: Path) -> dict[str, Any]:
    state = read_checkpoint(max((folder / "checkpoints").glob("*.ckpt")))
    return {key: state[key] for key in state.keys() - {"loops"}}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: row[key] for key in row if not UNLIKE.match(key)} for row in csv.DictReader(file)]


def _results(folder: Path) -> dict[str, Any]:
    return {
        key: value for key, value in json.loads((folder / "results.json").read_text()).items() if key not in MEASURED
    }


def _equal(whether: bool) -> str:
    return "equal" if whether else "DIFFERENT"
