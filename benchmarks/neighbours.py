"""Comparison of all systems of this library on the same data, with the same meter: whole runs on digits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.runs import finish
from fedssl.comparison.grid import GridRun, slug
from fedssl.comparison.statistics import paired_difference
from fedssl.runs.results import Measure, accuracy_over_simulated_time, spread
from fedssl.utils.units import MIB

GOAL = 90
"""Accuracy in percent whose simulated time is reported."""
Runs = dict[str, tuple[str, list[str]]]

NOTES = """
scikit-learn's handwritten digits, the top-level configurations with the changes named in each row; mean and standard
deviation over seeds, last round's value. Self-supervised rows train a ViT of 6 blocks on 6 clients for 24 rounds of 2
local epochs, half of the configurations' rounds (the pace controller may use 48, ProgFed has 5 to warm up). Two clients
each have a device of 20, 5 and 1 GMAC/s with 20/5, 5/1 and 1/0.25 Mbit/s down/up; deadlines are 74 virtual seconds a
round, which the slowest class misses. Supervised rows train a narrow ResNet-18. SmartFreeze ends by itself, after about
72 rounds, and end-to-end training of its clients has 72: on its devices, of which some hold no whole model, and on
devices that all do. Simulated minutes are those of the virtual clock; accuracy over time is the validation kNN after
every round, on 359 training images held out as queries (a standard error of 1.6 points at 90 %; the test has 360). kNN
minus reference: the first row of the kind, seed by seed, mean and 95 % t interval; the kinds are self-supervised,
ProgFed's clients and SmartFreeze's clients.
"""
MEMORY_NOTES = """
The digits over 6 clients by Dirichlet(0.5), 24 rounds of 2 local epochs; three devices have 40 MiB, which holds a
layer-wise stage (13 MiB) but not the whole model (55 MiB), three have 200 MiB. Clients whose memory cannot hold a stage
do not take part in it. Mean and standard deviation over seeds; the images are those of the stage with fewest. kNN
minus reference: end-to-end training on devices that are all large, seed by seed, mean and 95 % t interval.
"""
DEVICES = (
    "--model.devices.classes=["
    "{name: phone, macs_per_second: 2.0e10, download: 20 Mbit/s, upload: 5 Mbit/s, count: 2},"
    "{name: camera, macs_per_second: 5.0e9, download: 5 Mbit/s, upload: 1 Mbit/s, count: 2},"
    "{name: sensor, macs_per_second: 1.0e9, download: 1 Mbit/s, upload: 250 kbit/s, count: 2}]"
)
SHORT = ["--model.rounds=24", "--model.local_epochs=2"]
FLEET = ["--model.devices=DeviceClasses", DEVICES]
SHORT_FLEET = [*FLEET, *SHORT]
PACE = ["--model.pace=layerwise.BlockPerturbation", "--model.pace.window=2", "--model.pace.smoothing=2"]
BYOL = ["--model.method=BYOL", "--model.method.hidden_dim=256", "--model.method.output_dim=128"]
LATE = "--model.deadline={seconds: 74, late: %s}"
SELF_SUPERVISED: Runs = {
    "end-to-end": ("fedssl", SHORT_FLEET),
    "layer-wise": ("lw_fedssl", SHORT_FLEET),
    "layer-wise, depth dropout (3 of 6)": ("lw_fedssl", [*SHORT_FLEET, "--model.scheme.layer_budget=3"]),
    "layer-wise, pace controller": ("lw_fedssl", [*SHORT_FLEET, *PACE, "--model.pace.patience=2", "--model.rounds=48"]),
    "progressive": ("prog_fedssl", SHORT_FLEET),
    "progressive, depth dropout (3 of 6)": ("prog_fedssl", [*SHORT_FLEET, "--model.scheme.layer_budget=3"]),
    "progressive, ProgFed's schedule": (
        "prog_fedssl",
        [*SHORT_FLEET, "--model.scheme.long_last_stage=true", "--model.scheme.warm_up_rounds=1", "--model.rounds=29"],
    ),
    "end-to-end, late clients dropped": ("fedssl", [*SHORT_FLEET, LATE % "drop"]),
    "end-to-end, late clients send what is done (SALF)": (
        "fedssl",
        [*SHORT_FLEET, LATE % "send_finished_layers", "--model.aggregation=StragglerMean"],
    ),
    "end-to-end, L-DAWA": ("fedssl", [*SHORT_FLEET, "--model.aggregation=LDAWA"]),
    "end-to-end, BYOL": ("fedssl", [*SHORT_FLEET, *BYOL]),
    "end-to-end, BYOL, FedU": ("fedssl", [*SHORT_FLEET, *BYOL, "--model.start=FedU"]),
    "end-to-end, BYOL, FedEMA": ("fedssl", [*SHORT_FLEET, *BYOL, "--model.start=FedEMA"]),
    "FLL (SGD)": ("fll", [*SHORT_FLEET, "--model.scheme.layer_budget=null"]),
    "FLL (SGD), depth dropout (3 of 6)": ("fll", SHORT_FLEET),
}
SUPERVISED: Runs = {
    "supervised end-to-end": ("progfed", ["--model.scheme=EndToEnd", "--model.rounds=24", *FLEET]),
    "supervised ProgFed": ("progfed", FLEET),
}
WHOLE = ["--model.scheme=EndToEnd", "--model.pace=null", "--model.selector=RandomSelector", "--model.rounds=72"]
SMARTFREEZE: Runs = {
    "supervised end-to-end, SmartFreeze's clients, all large enough": (
        "smartfreeze",
        [*WHOLE, "--model.devices.memory=[40MiB, 41MiB]"],
    ),
    "supervised end-to-end, SmartFreeze's clients": ("smartfreeze", WHOLE),
    "SmartFreeze": ("smartfreeze", []),
    "SmartFreeze, random eligible devices": ("smartfreeze", ["--model.selector=RandomSelector"]),
}
HALF = [
    *SHORT,
    "--model.devices=DeviceClasses",
    "--model.devices.classes=[{memory: 200MiB, count: 3}, {memory: 40MiB, count: 3}]",
    "--data.partition=Dirichlet",
    "--data.partition.beta=0.5",
]
OFTEN = ["--trainer.check_val_every_n_epoch=1", "--data.validation_fraction=0.25", "--trainer.logger=false"]
MEMORY: Runs = {
    "end-to-end": ("fedssl", HALF),
    "layer-wise": ("lw_fedssl", HALF),
    "progressive": ("prog_fedssl", HALF),
    "end-to-end, all devices large": ("fedssl", [*SHORT, *HALF[-2:]]),
}


def add_commands(commands: Any) -> None:
    """Adds ``neighbours`` and ``small_memory``."""
    references = {label: next(iter(runs)) for runs in (SELF_SUPERVISED, SUPERVISED, SMARTFREEZE) for label in runs}
    large = dict.fromkeys(MEMORY, "end-to-end, all devices large")
    half = "A fleet in which half of the devices cannot hold the model"
    for name, runs, title, notes, against in (
        ("neighbours", SELF_SUPERVISED | SUPERVISED | SMARTFREEZE, "All systems on digits", NOTES, references),
        ("small_memory", MEMORY, half, MEMORY_NOTES, large),
    ):
        parser = commands.add_parser(name, help=title)
        parser.add_argument("--work", default=f"runs/benchmark_{name}", help="folder of the runs")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
        parser.add_argument("--systems", nargs="+", choices=list(runs), default=list(runs), metavar="SYSTEM")
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
        parser.set_defaults(run=run, runs=runs, title=title, notes=notes, references=against)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing and writes the table."""
    planned = [
        GridRun(
            label,
            ["-c", f"{arguments.runs[label][0]}.yaml", *arguments.runs[label][1], *OFTEN],
            seed,
            Path(arguments.work) / f"{slug(label)}-seed{seed}",
        )
        for seed in arguments.seeds
        for label in arguments.systems
    ]
    found = {
        (run.seed, plan.name): run.results | {"over_time": accuracy_over_simulated_time(run.folder / "metrics.csv")}
        for plan, run in zip(planned, finish(planned, arguments.jobs), strict=True)
    }
    runs = {label: [found[seed, label] for seed in arguments.seeds] for label in arguments.systems}
    table = [_row(label, each, runs.get(arguments.references[label], [])) for label, each in runs.items()]
    write_record(results, arguments.name, arguments.title, table, runs, arguments.notes)


def _row(label: str, runs: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, str]:
    lead = paired_difference(_by_seed(runs), _by_seed(reference)) if reference is not runs else None
    rounds = ["/".join(map(str, run["stage_rounds"])) for run in runs]
    return {
        "system": label,
        "kNN top-1 %": spread([run["knn_top1"] for run in runs]),
        "kNN minus reference": lead.text() if lead else "",
        "linear top-1 %": spread([run["linear_top1"] for run in runs]),
        "classifier %": Measure("", "classifier_top1").text(runs),
        "received MiB": spread([run["down_bytes_per_client"] / MIB for run in runs]),
        "sent MiB": spread([run["up_bytes_per_client"] / MIB for run in runs]),
        "GMACs": spread([run["macs_per_client"] / 1e9 for run in runs]),
        "peak activation MiB": spread([run["peak_activation_bytes"] / MIB for run in runs]),
        "simulated min": Measure("", "simulated_seconds", 60).text(runs),
        "validation kNN %": spread([run["over_time"][-1][1] for run in runs]) if runs[0]["over_time"] else "",
        f"simulated min to {GOAL} % validation kNN, by seed": _minutes_to(runs),
        "images %": _images(runs),
        "rounds of the stages": rounds[0] if len(set(rounds)) == 1 else "; ".join(rounds),
    }


def _images(runs: list[dict[str, Any]]) -> str:
    shares = [100 * min(stage["images"] for stage in run["eligibility"]) for run in runs if "eligibility" in run]
    return spread(shares) if shares else "100"


def _minutes_to(runs: list[dict[str, Any]]) -> str:
    """Virtual minutes until the first evaluation that reached the goal, for each seed."""
    if not any(at for run in runs for at, _ in run["over_time"]):
        return ""  # no devices, or devices that take no time
    reached = [next((at for at, accuracy in run["over_time"] if accuracy >= GOAL), None) for run in runs]
    return " / ".join("never" if at is None else f"{at / 60:.1f}" for at in reached)


def _by_seed(runs: list[dict[str, Any]]) -> dict[int, float]:
    return {run["seed"]: run["knn_top1"] for run in runs}
