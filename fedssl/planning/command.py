"""Command ``train.py plan``: a Trainer that predicts a run's cost, and prints it as JSON or as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from json import dumps
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from rich.console import Console

from fedssl.data.clients import ClientData
from fedssl.devices import DeviceFile
from fedssl.planning.budget import ORDER, fit_budget
from fedssl.planning.fleet_plan import layer_table, plan_fleet
from fedssl.planning.plan import Planner, plan_as_dict
from fedssl.training.federated import FederatedSSL
from fedssl.utils.tables import Table
from fedssl.utils.units import MIB, format_bytes, parse_bytes
from linear_eval import EvaluatedModule

END_TO_END = "end-to-end"
SHOWN_CHOICES = 12
SHOWN_DEVICES = 8
"""Largest number of classes of devices in a table."""
MORE = "and {} more: --json has them all"


class PlanningTrainer(Trainer):
    """A Lightning Trainer that can also say beforehand what a run will cost."""

    def plan(
        self,
        model: EvaluatedModule,
        datamodule: LightningDataModule,
        json: bool = False,
        images_per_client: int | None = None,
        budget: str | None = None,
        device_profile: str | None = None,
        plot: str | None = None,
    ) -> None:
        """Predict what each device will pay for a federated run, without training.

        Args:
            model: The configured run.
            datamodule: Tells how many images each client has.
            json: Print JSON and nothing else.
            images_per_client: Instead of the data set's division; needs no data.
            budget: Memory of a device, such as 512MiB: lists what fits it.
            device_profile: YAML or CSV file of devices: says what each of them can hold and how long a round takes.
                Without it the run's own devices are shown, if it has any.
            plot: PNG or SVG file for a picture of memory, operations and traffic over the rounds.

        Raises:
            ValueError: The run is not federated, neither data nor ``images_per_client`` is there, or an option is
                impossible.
        """
        if not isinstance(model, FederatedSSL) or not isinstance(datamodule, ClientData):
            raise ValueError(f"only federated runs can be planned, this is a {type(model).__name__}")
        size = None if budget is None else parse_bytes(budget)
        picture = None if plot is None else check_plot(Path(plot))
        settings, images = model.settings, _images_of_clients(datamodule, images_per_client)
        devices = settings.cohort.devices if device_profile is None else DeviceFile(device_profile)
        planner = Planner(settings, images)
        profiles = devices.profiles(len(images), settings.seed) if devices else []
        plan = plan_as_dict(planner)
        if size:
            plan["budget"] = fit_budget(planner, size)
        if profiles:
            plan["fleet"] = plan_fleet(planner, profiles)
            if settings.scheme.offers_choices:
                plan["layers"] = layer_table(planner, profiles)
        if picture:
            from fedssl.planning.plot import all_curves, plan_figure  # its drawing library takes a while to load
            from fedssl.runs.report.theme import save_figure

            save_figure(plan_figure(all_curves(planner)), picture)
        if json:
            print(dumps(plan, indent=2, allow_nan=False))
        else:
            print_blocks(plan_tables(plan), Console())


def _images_of_clients(data: ClientData, images_per_client: int | None) -> list[int]:
    if images_per_client is not None:
        if images_per_client < 2:
            raise ValueError(f"images_per_client must be at least 2, which can be contrasted, got {images_per_client}")
        return [images_per_client] * data.num_clients
    # A forecast must not begin with a download.
    data.download = False
    try:
        data.setup("fit")
    except FileNotFoundError as error:
        raise ValueError(f"{error}. Or give --images_per_client, which needs no data") from error
    if max(data.datasets.sizes) < 2:
        raise ValueError(f"no client has two images to contrast, of {len(data.pool)} in all: lower --data.clients")
    return data.datasets.sizes


def check_plot(path: Path) -> Path:
    """Return the path if a picture can be written there.

    Raises:
        ValueError: It is neither PNG nor SVG, or its folder does not exist.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"plot {str(path)!r} must end in .png or .svg")
    if not path.parent.is_dir():
        raise ValueError(f"plot {str(path)!r} cannot be written: there is no folder {str(path.parent)!r}")
    return path


def print_blocks(blocks: Iterable[Table | str], console: Console) -> None:
    """Print tables and sentences."""
    for block in blocks:
        console.print(block.rich(console.width) if isinstance(block, Table) else block, highlight=False)


def plan_tables(plan: dict[str, Any]) -> Iterator[Table | str]:
    """Tabulate the stages, and what was asked for beside them: the budget, the fleet, the layers."""
    yield from _stages(plan)
    for key, tables in (("budget", budget_tables), ("fleet", fleet_tables), ("layers", layer_tables)):
        if key in plan:
            yield from tables(plan[key])


def _stages(plan: dict[str, Any]) -> Iterator[Table | str]:
    """Tabulate the stages, the whole run and end-to-end training; then the figures as the papers count them."""
    summary, ratio, paper = plan["summary"], plan["ratio"], plan["convention"]["paper"]
    rows = []
    for stage in plan["stages"]:
        blocks = f"{len(stage['trained'])}/{len(stage['present'])}"
        rows.append([str(stage["index"] + 1), blocks, str(stage["rounds"]), *_costs(stage, stage["step"])])
    for label, key in (("all", "total"), (END_TO_END, "end_to_end")):
        rows.append([label, "", str(summary["rounds"]), *_costs(plan[key])])
    peak, *others = (f"{ratio[key]:.2f}x" for key in ("peak_memory_bytes", "macs", "down_bytes", "up_bytes"))
    rows.append(["ratio", "", "", peak, "", *others])
    header = ["stage", "blocks", "rounds", "peak MiB", "kept MiB", "GMACs", "down MiB", "up MiB"]
    title = f"{summary['scheme']} {summary['method']}, a client over {summary['rounds']} rounds"
    yield Table(header, rows, title, "blocks: trained/present; kept: activations that autograd keeps for backward")
    for label, key in (("planned", "total"), (END_TO_END, "end_to_end")):
        gflops, traffic, worst = (paper[key][name] for name in ("gflops", "traffic_gb", "worst_traffic_gb"))
        counted = f"{gflops:,.1f} GFLOPs, {traffic:,.2f} GB of traffic, {worst:,.2f} GB"
        yield f"as the paper counts, {label}: {counted} if every round downloads all layers"


def budget_tables(budget: dict[str, Any]) -> Iterator[Table | str]:
    """Tabulate what fits a budget; if nothing does, say by how much the cheapest misses it."""
    size, fits, least = format_bytes(budget["bytes"]), budget["fits"], budget["cheapest"]
    if not fits:
        peak, missing = (format_bytes(least[key]) for key in ("peak_memory_bytes", "missing_bytes"))
        options = ", ".join(f"{key} {'on' if least[key] else 'off'}" for key in ("alignment", "proximal"))
        setting = f"{least['scheme']}, {_blocks(least)} blocks a stage, batch {least['batch_size']}, {options}"
        tried = f"the cheapest of {budget['tried']} settings needs {peak}, {missing} too much ({setting})"
        yield f"nothing fits {size}: {tried}"
        return
    rows = []
    for row in fits[:SHOWN_CHOICES]:
        used = ["on" if row[key] else "off" for key in ("alignment", "proximal")]
        costs = [amount(row["peak_memory_bytes"] / MIB), f"{row['macs_per_image'] / 1e9:.2f}"]
        slower = "" if row["plan_time"] is None else f"+{100 * row['plan_time']:.0f} %"
        rows.append([row["scheme"], _blocks(row), str(row["batch_size"]), *used, *costs, slower])
    header = ["scheme", "blocks", "batch", "alignment", "proximal", "peak MiB", "GMACs/image", "plan"]
    yield Table(header, rows, f"{len(fits)} of {budget['tried']} settings fit {size}", ORDER)
    if len(fits) > SHOWN_CHOICES:
        yield MORE.format(len(fits) - SHOWN_CHOICES)


def fleet_tables(fleet: dict[str, Any]) -> Iterator[Table | str]:
    """Tabulate devices and rounds: who can hold what, and how long a round takes."""
    rows = []
    for device in fleet["devices"][:SHOWN_DEVICES]:
        memory = "no limit" if device["memory_bytes"] is None else format_bytes(device["memory_bytes"])
        heading = [device["name"], str(device["clients"]), memory]
        for label, stage in _labelled(device):
            seconds = stage["round_seconds"]
            times = (seconds["download"], seconds["compute"], seconds["upload"], stage["first_round_seconds"])
            fits = f"-{format_bytes(stage['missing_bytes'])}" if stage["missing_bytes"] else "yes"
            rows.append([*heading, label, fits, *map(_seconds, times)])
            heading = ["", "", ""]
    header = ["device", "clients", "memory", "stage", "fits", "down s", "work s", "up s", "first s"]
    columns = "fits: or the missing memory; down, work (local training) and up: of a later round; "
    yield Table(header, rows, "a round on each class of devices", f"{columns}first: the stage's first round in all")
    if len(fleet["devices"]) > SHOWN_DEVICES:
        yield MORE.format(len(fleet["devices"]) - SHOWN_DEVICES)
    rows = []
    for label, stage in _labelled(fleet):
        slowest, average = _seconds(stage["slowest_seconds"]), _seconds(stage["mean_round_seconds"])
        rows.append([label, str(stage["eligible_clients"]), slowest, average])
    header = ["stage", "clients that can hold it", "slowest of them s", "mean round s"]
    yield Table(header, rows, "rounds", "mean round: of the cohorts that the seed draws")
    clients = sum(device["clients"] for device in fleet["devices"])
    for label, key, stages in (
        ("the run", "hours", fleet["stages"]),
        (f"{END_TO_END} training", "end_to_end_hours", [fleet["end_to_end"]]),
    ):
        hours, holders = fleet["total"][key], min(stage["eligible_clients"] for stage in stages)
        takes = "is impossible: nobody can hold a stage" if hours is None else f"takes {hours:,.2f} hours"
        yield f"{label} {takes}; {holders} of {clients} clients can hold every stage"


def layer_tables(layers: dict[str, Any]) -> Iterator[Table | str]:
    """Tabulate costs by depth, then say how many clients train how many layers at each depth."""
    rows = []
    for row in layers["costs"]:
        sizes = (amount(row[key] / MIB) for key in ("peak_memory_bytes", "active_bytes"))
        rows.append([str(row["depth"]), str(row["trained"]), *sizes, f"{row['macs'] / 1e9:.2f}"])
    header = ["depth", "trained", "peak MiB", "up MiB", "GMACs"]
    kinds = "last layers, or adapters or groups of each"
    caption = f"trained: {kinds}; up, GMACs: of a round with {layers['images']} images"
    yield Table(header, rows, "what clients can train", caption)
    for depth, counts in layers["trained_layers"].items():
        clients = ", ".join(f"{number} train {count}" for count, number in sorted(Counter(counts).items()))
        mark = " (chosen)" if depth == layers["depth"] else ""
        yield f"depth {depth}: mean {sum(counts) / len(counts):.2f}; clients: {clients}{mark}"


def amount(value: float) -> str:
    """Format a number with at most one decimal, and thousands separated."""
    return f"{value:,.0f}" if value >= 999.95 else f"{value:.1f}"


def _costs(costs: dict[str, Any], step: dict[str, Any] | None = None) -> list[str]:
    """Format peak, activations of a step (blank for sums), GMACs and traffic."""
    kept = amount(step["activations"] / MIB) if step else ""
    traffic = (amount(costs[key] / MIB) for key in ("down_bytes", "up_bytes"))
    return [amount(costs["peak_memory_bytes"] / MIB), kept, amount(costs["macs"] / 1e9), *traffic]


def _blocks(row: dict[str, Any]) -> str:
    sizes = row["blocks_per_stage"]
    return str(sizes[0]) if len(set(sizes)) == 1 else "+".join(map(str, sizes))


def _labelled(plan: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the stages with their numbers from 1, and end-to-end training."""
    return [*((str(stage["index"] + 1), stage) for stage in plan["stages"]), (END_TO_END, plan["end_to_end"])]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
