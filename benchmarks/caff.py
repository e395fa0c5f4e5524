"""CAFF and its baselines at equal memory, upload and operations, on images and on text."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW

from benchmarks.caff_steps import write_steps
from benchmarks.caff_systems import FLEETS, FULL, SYSTEMS, Shareout, Shares, System
from benchmarks.caff_tasks import CLIENTS, COHORT, DEPTH, WEIGHT_DECAY, Images, Task, Text, fit
from benchmarks.record import write_record
from fedssl import IID, FederatedSSL
from fedssl.comparison.grid import slug
from fedssl.comparison.statistics import paired_difference
from fedssl.data.datasets import SampleSet
from fedssl.data.partition import Partitioner
from fedssl.runs.results import spread
from fedssl.utils.files import write_atomically
from fedssl.utils.units import MIB

RARE = (7, 8, 9)
DIFFERENCE, COSTS = "minus CAFF", ("sent MiB", "GMACs", "kept MiB")
TASKS = (Images, Text)
COMMON = """
Nine clients in three classes of devices with limits as fractions of what training the whole network takes, IID; each
round trains three of those that can take part, one local epoch, AdamW. No limit is exceeded, by the planner's count.
All systems start from the same pretrained weights; every depth has weights of its own, pretrained alike. Trained: last
layers, or ranks of adapters, of each class of devices; "-" cannot take part. "fits no device": no device can train the
least that the system offers. One learning rate for layers and one for adapters: each the best of two or three for
training without limits, by the same test data but another seed. Mean and standard deviation over seeds. Minus CAFF: the
difference to CAFF under the same limits (without limits, to full finetuning), taken seed by seed, with its 95 % t
interval, not corrected for the number of rows. Rows without limits' names finetune no network. Sent and GMACs:
of the mean client over the run; kept: most bytes that autograd keeps in a step. Runs in which the same devices train
the same layers under different limits are one run.
"""
NOTES = {
    "images": f"""
Fashion-MNIST, 1,080 labelled images, another draw for each seed; a ViT of 6 blocks, width 64, 16 patches, pretrained by
SimCLR on {Images.pretraining_images:,} images without labels for {Images.pretraining_epochs} epochs;
{Images.full_rounds} rounds, batch 32; 2,000 test images. With rare classes the classes 7 to 9 lie on the three weakest
devices alone.
"""
    + COMMON,
    "text": f"""
Tiny Shakespeare, pretrained on its first {Text.cuts["pretraining"][1]:,} characters for
{Text.pretraining_epochs} epochs, finetuned on 60,000 characters of its end, of which 25 % are the test; a causal
transformer of 6 blocks, width 64, context 64; {Text.full_rounds} rounds, batch 16; perplexity a character.
"""
    + COMMON,
}


class RareOnWeakest(Partitioner):
    """Images of the rare classes lie on the last third of the clients, all others on all of them."""

    uses_labels = True

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        labels = samples.labels.numpy()
        order = rng.permutation(len(labels))
        rare = np.isin(labels[order], RARE)
        clients = np.array_split(order[~rare], num_clients)
        strong = num_clients - num_clients // 3
        for client, images in enumerate(np.array_split(order[rare], num_clients - strong), start=strong):
            clients[client] = np.concatenate([clients[client], images])
        return clients


def add_commands(commands: Any) -> None:
    """Adds ``caff``."""
    parser = commands.add_parser("caff", help="CAFF and baselines at equal memory, upload and operations")
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--work", default="runs/benchmark_caff", help="folder of finished runs, which are not repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--parts", nargs="+", choices=("steps", *NOTES), default=("steps", *NOTES))
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds; the record goes to the work folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs what is missing and writes the tables."""
    work, quick = Path(arguments.work), arguments.quick
    if quick:
        work = results = work / "quick"
        arguments.seeds = [0]
    torch.set_num_threads(1)
    tasks: list[Task] = [kind(arguments.root, work, quick) for kind in TASKS]
    if "steps" in arguments.parts:
        write_steps(tasks, results)
    for task in tasks:
        if task.name in arguments.parts:
            _compare(task, arguments.seeds, results)


def _compare(task: Task, seeds: list[int], results: Path) -> None:
    rows = [
        (fleet, name, shares)
        for rare in (False, True)[: 2 if task.name == "images" else 1]
        for fleet, name, shares in _rows(task, rare)
    ]
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in seeds:
        for name, found in task.baselines(seed, task.weights(DEPTH)).items():
            runs[name].append(found | {"seed": seed})
        for fleet, name, shares in rows:
            if shares:
                runs[f"{fleet}: {name}"].append(_finetuned(task, name, shares, FLEETS[fleet].rare, seed))
    table = [_quality(task, name, each, []) for name, each in runs.items() if "extents" not in each[0]]
    for fleet, name, shares in rows:
        reference = "CAFF" if "CAFF" in FLEETS[fleet].systems else FULL
        against = runs[f"{fleet}: {reference}"] if name != reference else []
        table.append({"limits": fleet} | _row(task, name, shares, runs[f"{fleet}: {name}"], against))
    columns = ("limits", "system", "layers", "trained", "devices", task.measure, DIFFERENCE, *COSTS)
    rare = {"classes 7-9": ""} if task.name == "images" else {}
    table = [dict.fromkeys(columns, "") | rare | row for row in table]
    title = f"CAFF and its baselines at equal budgets: {task.name}"
    write_record(results, f"caff_{task.name}", title, table, runs, NOTES[task.name])


def _rows(task: Task, rare: bool) -> Iterator[tuple[str, str, Shares | None]]:
    """Layers that the devices of each fleet train, in each system."""
    data = task.data(_partition(rare), 0)
    data.setup("fit")
    share_out = Shareout(task, data.datasets.sizes)
    for fleet, limits in FLEETS.items():
        if limits.rare == rare:
            for name in limits.systems:
                yield fleet, name, share_out(SYSTEMS[name], limits)


def _partition(rare: bool) -> Partitioner:
    return RareOnWeakest() if rare else IID()


def _finetuned(task: Task, name: str, shares: Shares, rare: bool, seed: int) -> dict[str, Any]:
    """A run's results, from its file if it is there."""
    parts = [task.name, name, shares.depth, "".join(map(str, shares.extents)), "rare" if rare else "iid", seed]
    file = task.work / f"{slug(' '.join(map(str, parts)))}.json"
    if not file.exists():
        results = _finetune(task, SYSTEMS[name], shares, rare, seed)
        print(file.stem, round(results[task.measure], 2), f"{results['processor_seconds']:.0f} s", flush=True)
        write_atomically(file, lambda path: path.write_text(json.dumps(results)))
    return json.loads(file.read_text())


def _finetune(task: Task, system: System, shares: Shares, rare: bool, seed: int) -> dict[str, Any]:
    weights = task.weights(shares.depth) if system.pretrained else None
    start = time.process_time()
    rate = task.adapter_learning_rate if system.adapters else task.learning_rate
    module = FederatedSSL(
        task.spec(shares.depth, weights=weights),
        task.method(),
        task.views,
        partial(AdamW, lr=rate, weight_decay=WEIGHT_DECAY),
        system.scheme(None),
        task.rounds,
        batch_size=task.batch_size,
        participation=COHORT,
        devices=shares.devices,
        aggregation=system.rule(),
        seed=seed,
        heads=str(weights) if weights and task.keeps_heads else None,
    )
    data = task.data(_partition(rare), seed)
    fit(module, data, task.rounds)
    assert module.federation
    server = module.federation.server
    choices = module.settings.scheme.choices(server.stage)
    found = [server.participation.choose(client, choices) for client in range(CLIENTS)]
    assert shares.extents == tuple(0 if each is None else choices[each].num_trained for each in found)
    costs = server.ledger.summary() | {"depth": shares.depth, "extents": shares.extents}
    return task.quality(module, data) | costs | {"seed": seed, "processor_seconds": time.process_time() - start}


def _row(
    task: Task, name: str, shares: Shares | None, runs: list[dict[str, Any]], against: list[dict[str, Any]]
) -> dict[str, str]:
    """One line; ``against`` are the runs that the quality is compared with, none for the reference itself."""
    if not shares:
        return {"system": name, task.measure: "fits no device"}
    return _quality(task, name, runs, against) | {
        "layers": str(shares.depth),
        "trained": shares.text(SYSTEMS[name].adapters),
        "devices": str(sum(map(bool, shares.extents))),
        COSTS[0]: spread([run["up_bytes_per_client"] / MIB for run in runs]),
        COSTS[1]: spread([run["macs_per_client"] / 1e9 for run in runs]),
        COSTS[2]: spread([run["peak_activation_bytes"] / MIB for run in runs]),
    }


def _quality(task: Task, name: str, runs: list[dict[str, Any]], against: list[dict[str, Any]]) -> dict[str, str]:
    own, other = ({run["seed"]: run[task.measure] for run in each} for each in (runs, against))
    difference = paired_difference(own, other)
    cells = {"system": name, task.measure: spread([*own.values()]), DIFFERENCE: difference.text() if difference else ""}
    if task.name == "images":
        cells["classes 7-9"] = spread([float(np.mean([run["per_class"][label] for label in RARE])) for run in runs])
    return cells
