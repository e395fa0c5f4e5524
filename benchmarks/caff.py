"""CAFF and its baselines at equal memory, upload and operations: whole runs of ``train.py`` on digits."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demands import DEPTH, Demand, demands
from benchmarks.record import write_record
from benchmarks.runs import finish
from fedssl.comparison.grid import PlannedRun, slug
from fedssl.comparison.measures import MIB, spread
from fedssl.partition import Partitioner

TITLE = "CAFF and its baselines at equal budgets"
RARE = (7, 8, 9)
"""Classes that only the weakest devices hold, in the last fleet."""
NOTES = """
scikit-learn's handwritten digits, `caff.yaml` with 12 rounds and IID clients, from weights that SimCLR learnt on the
same images without labels; 9 clients in three classes of devices, limits as fractions of what training all six layers
takes. Mean and standard deviation over seeds, last round's value, test split; one learning rate for all systems. "fits
no device" is a system that none of the fleet's devices can train. In the last fleet the classes 7 to 9 lie on the three
weakest devices alone. Upload and operations are those of the mean client over the run.
"""
PEAK_NOTES = """
One local step of 32 images in `caff.yaml`'s ViT, AdamW: peak memory as the planner predicts it and as the
allocator of a real step has it, activations that autograd keeps, operations, and bytes sent in a round.
"""
COLUMNS = ["limits", "system", "classifier %", "classes 7-9 %", "devices", "sent MiB", "GMACs", "peak activation MiB"]
LAST = "--model.scheme.depths=[1,2,3,4,5,6]"
LORA = "--model.scheme.ranks=[1,2,4,8]"


@dataclass(frozen=True)
class System:
    """CAFF or a baseline.

    Args:
        settings: Of ``caff.yaml``.
        offers: Whether a configuration is among those that it gives to clients.
    """

    settings: list[str]
    offers: Callable[[Demand], bool]

    def least(self, quantity: str, known: list[Demand]) -> int:
        """What its cheapest configuration takes."""
        return min(demand.amount(quantity) for demand in known if self.offers(demand))


SYSTEMS = {
    "full finetuning": System(["--model.scheme=EndToEnd"], lambda demand: demand.trained == DEPTH),
    "CAFF": System([LAST], lambda demand: not demand.rank),
    "AllSmall": System(["--model.scheme=AllSmall", LAST], lambda demand: demand.trained == demand.depth),
    "DropDevices": System(["--model.scheme=EndToEnd"], lambda demand: demand.trained == DEPTH),
    "LoRA": System(["--model.scheme=LoRA", LORA], lambda demand: bool(demand.rank)),
    "HetLoRA": System(
        ["--model.scheme=HeterogeneousLoRA", LORA, "--model.aggregation=NormWeightedMean"],
        lambda demand: bool(demand.rank),
    ),
}
ONE, EQUAL, UNEQUAL = ("full finetuning",), ("CAFF", "AllSmall", "LoRA"), tuple(SYSTEMS)[1:]


@dataclass(frozen=True)
class Budgets:
    """Limits of three classes of devices, as fractions of what full finetuning takes.

    Args:
        systems: That are compared under them.
        quantity: Key of a device class.
        fractions: Of the strongest to the weakest class; none: no devices.
        rare: Whether only the weakest hold the rare classes.
    """

    systems: tuple[str, ...]
    quantity: str = "memory"
    fractions: tuple[float, ...] = ()
    rare: bool = False

    def limits(self, known: list[Demand]) -> list[int]:
        """Of each class of devices."""
        whole = next(demand for demand in known if demand.trained == DEPTH)
        return [int(fraction * whole.amount(self.quantity)) for fraction in self.fractions]


FLEETS = {
    "none": Budgets(ONE),
    "memory 3/4": Budgets(EQUAL, "memory", (0.75, 0.75, 0.75)),
    "memory 1, 2/3, 1/3": Budgets(UNEQUAL, "memory", (1, 2 / 3, 1 / 3)),
    "upload 1/4": Budgets(EQUAL, "upload_limit", (0.25, 0.25, 0.25)),
    "upload 1, 1/3, 1/50": Budgets(UNEQUAL, "upload_limit", (1, 1 / 3, 1 / 50)),
    "operations 0.7": Budgets(EQUAL, "macs_limit", (0.7, 0.7, 0.7)),
    "operations 1, 0.7, 0.45": Budgets(UNEQUAL, "macs_limit", (1, 0.7, 0.45)),
    "none; rare classes": Budgets(ONE, rare=True),
    "memory 1, 2/3, 1/3; rare classes": Budgets(UNEQUAL, "memory", (1, 2 / 3, 1 / 3), rare=True),
}


class RareOnWeakest(Partitioner):
    """Images of the rare classes lie on the last third of the clients, all others on all of them."""

    uses_labels = True

    def _divide(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(len(labels))
        rare = np.isin(labels[order], RARE)
        clients = np.array_split(order[~rare], num_clients)
        strong = num_clients - num_clients // 3
        for client, images in enumerate(np.array_split(order[rare], num_clients - strong), start=strong):
            clients[client] = np.concatenate([clients[client], images])
        return clients


def add_commands(commands: Any) -> None:
    """Adds ``caff`` and ``caff_memory``."""
    parser = commands.add_parser("caff", help="CAFF and baselines at equal memory, upload and operations")
    parser.add_argument("--work", default="runs/benchmark_caff", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fleets", nargs="+", choices=list(FLEETS), default=list(FLEETS), metavar="FLEET")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds; the record goes to the work folder")
    parser.set_defaults(run=run)
    memory = commands.add_parser("caff_memory", help="predicted and measured cost of last layers and adapters")
    memory.set_defaults(run=run_memory)


def run_memory(arguments: argparse.Namespace, results: Path) -> None:
    """Measures a step of every number of trained layers and every rank."""
    found = demands(measured=True)
    table = [demand.row() for demand in found]
    write_record(results, "caff_memory", "What CAFF and LoRA take", table, [vars(each) for each in found], PEAK_NOTES)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing and writes the table."""
    work, quick = Path(arguments.work), arguments.quick
    seeds, rounds, epochs = ([0], 2, 2) if quick else (arguments.seeds, 12, 20)
    encoders = dict(zip(seeds, _pretrain(work, seeds, epochs, arguments.jobs), strict=True))
    planned = _plan(work, encoders, arguments.fleets, rounds)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for plan, ended in zip(planned, finish(planned, arguments.jobs), strict=True):
        runs[plan.name].append(dict(ended.results))
    table = [
        _row(fleet, system, runs.get(f"{fleet}: {system}", []))
        for fleet in arguments.fleets
        for system in FLEETS[fleet].systems
    ]
    write_record(work if quick else results, "caff", TITLE, table, runs, NOTES)


def _plan(work: Path, encoders: dict[int, Path], fleets: list[str], rounds: int) -> list[PlannedRun]:
    """All runs: every seed, every fleet, every system that some device of it can train."""
    known = demands(measured=False)
    shared = ["-c", "caff.yaml", f"--model.rounds={rounds}", "--trainer.check_val_every_n_epoch=50"]
    shared += ["--trainer.logger=false"]
    return [
        PlannedRun(
            f"{fleet}: {system}",
            [*shared, f"--model.encoder.weights={encoder}", *settings],
            seed,
            work / f"{slug(f'{fleet} {system}')}-seed{seed}",
        )
        for seed, encoder in encoders.items()
        for fleet in fleets
        for system, settings in _systems(fleet, known).items()
    ]


def _pretrain(work: Path, seeds: list[int], epochs: int, jobs: int) -> list[Path]:
    """Folders of encoders that were trained without labels, one for each seed."""
    settings = ["-c", "centralized.yaml", "--model.optimizer.lr=1.0e-3", f"--trainer.max_epochs={epochs}"]
    settings += ["--trainer.logger=false"]
    planned = [PlannedRun("pretraining", settings, seed, work / f"pretrained-seed{seed}") for seed in seeds]
    return [run.folder / "encoder" for run in finish(planned, jobs)]


def _systems(fleet: str, known: list[Demand]) -> dict[str, list[str]]:
    """Settings of the systems that some device of the fleet can train."""
    budgets = FLEETS[fleet]
    partition = [f"--data.partition={'benchmarks.caff.RareOnWeakest' if budgets.rare else 'IID'}"]
    limits = budgets.limits(known)
    classes = ", ".join(f"{{{budgets.quantity}: {limit}, count: 3}}" for limit in limits)
    devices = [f"--model.devices.classes=[{classes}]"] if limits else ["--model.devices=null"]
    return {
        name: [*partition, *SYSTEMS[name].settings, *devices]
        for name in budgets.systems
        if not limits or SYSTEMS[name].least(budgets.quantity, known) <= max(limits)
    }


def _row(fleet: str, system: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    if not runs:
        return dict.fromkeys(COLUMNS, "") | {"limits": fleet, "system": system, "classifier %": "fits no device"}
    rare = [np.mean([run["classifier_per_class"][label] for label in RARE]) for run in runs]
    devices = [run["eligibility"][0]["eligible"] if "eligibility" in run else run["clients"] for run in runs]
    values = [
        fleet,
        system,
        spread([run["classifier_top1"] for run in runs]),
        spread([float(each) for each in rare]),
        spread(devices),
        spread([run["up_bytes_per_client"] / MIB for run in runs]),
        spread([run["macs_per_client"] / 1e9 for run in runs]),
        spread([run["peak_activation_bytes"] / MIB for run in runs]),
    ]
    return dict(zip(COLUMNS, values, strict=True))
