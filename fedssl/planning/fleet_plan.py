"""A plan on a fleet of devices: who can hold what, and how long a round takes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from rich.console import Console

from fedssl.costs.forecast import Need
from fedssl.devices import DeviceProfile, device_extents
from fedssl.federation.dry import DryRound, dry_rounds
from fedssl.planning.plan import Planner
from fedssl.planning.table import MIB, amount, plain_table
from fedssl.server.participation import Participation
from fedssl.utils.units import format_bytes
from layerwise import Scheme, Stage, reference_scheme

END_TO_END = "end-to-end"
SHOWN = 8
"""Classes of devices in the table for people."""


@dataclass(frozen=True)
class StageTraffic:
    """What a client that takes part in every round receives, and sends, in a round of a stage.

    Args:
        first: Received in the stage's first round.
        later: Received in its last round; less, if frozen layers came in the first.
        up: Sent.
    """

    first: int
    later: int
    up: int


def plan_fleet(planner: Planner, profiles: list[DeviceProfile]) -> dict[str, Any]:
    """Plan memory and time of every class of devices in every stage, and of the rounds that the run would have.

    Args:
        planner: Planner of the configured run.
        profiles: Devices of the clients.
    """
    scheme = planner.settings.scheme
    run, whole = _Run(planner, profiles, scheme), _Run(planner, profiles, reference_scheme())
    devices = []
    for profile, clients in _classes(profiles).items():
        stages = [run.device(profile, clients, i) | {"index": stage.index} for i, stage in enumerate(run.stages)]
        devices.append(
            {
                "name": profile.name,
                "clients": len(clients),
                "memory_bytes": _finite(profile.memory_bytes),
                "stages": stages,
                "end_to_end": whole.device(profile, clients, 0),
            }
        )
    return {
        "devices": devices,
        "stages": [run.rounds(i) | {"index": stage.index} for i, stage in enumerate(run.stages)],
        "end_to_end": whole.rounds(0),
        "total": {"hours": run.hours(), "end_to_end_hours": whole.hours()},
    }


class _Run:
    """One scheme on the fleet, run dry."""

    def __init__(self, planner: Planner, profiles: list[DeviceProfile], scheme: Scheme) -> None:
        self._planner, self._profiles, self._scheme = planner, profiles, scheme
        federation = planner.federation(scheme, profiles)
        server = federation.server
        self.stages = server.stages
        self._variants = [options.priced for options in server.options]
        # A device that can hold no variant is shown with what the least one lacks.
        self._chosen = [
            [len(each) - 1 if chosen is None else chosen for chosen in self._choices(server.participation, each)]
            for each in self._variants
        ]
        self._eligible = [
            [client for client, chosen in enumerate(self._choices(server.participation, each)) if chosen is not None]
            for each in self._variants
        ]
        self._known: dict[tuple[int, ...], list[StageTraffic]] = {}
        self._seconds = [(each.report.stage, each.report.seconds or 0.0) for each in dry_rounds(federation)]

    def device(self, profile: DeviceProfile, clients: Sequence[int], position: int) -> dict[str, Any]:
        """Return what a stage asks of a class of devices; of its slowest client, where they have different images."""
        traffic = self._traffic(clients[0])[position]
        needs = [self._need(client, position) for client in clients]
        memory, macs = max(need.peak_memory_bytes for need in needs), max(need.macs for need in needs)
        seconds = {
            "download": profile.seconds(traffic.later, 0, 0),
            "compute": profile.seconds(0, macs, 0),
            "upload": profile.seconds(0, 0, traffic.up),
        }
        return {
            "peak_memory_bytes": memory,
            "missing_bytes": max(0, memory - profile.memory_bytes),
            "round_seconds": seconds | {"total": sum(seconds.values())},
            "first_round_seconds": profile.seconds(traffic.first, macs, traffic.up),
        }

    def rounds(self, position: int) -> dict[str, Any]:
        """Count the clients that can take part in a stage, and time its rounds; ``None`` if nobody can."""
        durations = []
        for client in self._eligible[position]:
            traffic, macs = self._traffic(client)[position], self._need(client, position).macs
            durations.append(self._profiles[client].seconds(traffic.later, macs, traffic.up))
        drawn = [seconds for stage, seconds in self._seconds if stage == position]
        return {
            "eligible_clients": len(durations),
            "slowest_seconds": max(durations, default=None),
            "mean_round_seconds": mean(drawn) if durations else None,
        }

    def hours(self) -> float | None:
        """Return the duration of the whole run with the seed's cohorts; ``None`` if nobody can hold some stage."""
        if not all(self._eligible):
            return None
        return sum(seconds for _, seconds in self._seconds) / 3600

    def _choices(self, participation: Participation, variants: Sequence[Stage]) -> list[int | None]:
        return [participation.choose(client, variants) for client in range(len(self._profiles))]

    def _need(self, client: int, position: int) -> Need:
        stage = self._variants[position][self._chosen[position][client]]
        return self._planner.forecast(stage, self._planner.images[client])

    def _traffic(self, client: int) -> list[StageTraffic]:
        """Return a client's traffic if it takes part in every round, beside one that trains the most."""
        own = tuple(chosen[client] for chosen in self._chosen)
        if own not in self._known:
            most = tuple(min(chosen) for chosen in self._chosen)
            pair = FixedVariants([max(self._planner.images)] * 2, [own, most])
            played = dry_rounds(self._planner.federation(self._scheme, [], pair))
            self._known[own] = [_stage_traffic(played, stage.index) for stage in self.stages]
        return self._known[own]


class FixedVariants(Participation):
    """Participation of all clients in every round, each with its own variants.

    Args:
        images: Number of images of every client.
        variants: Position of each client's variant, for every stage.
    """

    def __init__(self, images: Sequence[int], variants: Sequence[Sequence[int]]) -> None:
        super().__init__(images)
        self._fixed = variants

    def choose(self, client: int, variants: Sequence[Stage]) -> int | None:
        """Return the position of the client's variant."""
        return self._fixed[client][variants[0].index]


def _stage_traffic(played: Sequence[DryRound], stage: int) -> StageTraffic:
    """Return the traffic of client 0 in a stage."""
    notes = [each.notes for each in played if each.report.stage == stage]
    return StageTraffic(notes[0].down_bytes[0], notes[-1].down_bytes[0], notes[-1].up_bytes[0])


def print_fleet(fleet: dict[str, Any], console: Console) -> None:
    """Who can hold what, and how long rounds take."""
    columns = ["device", "clients", "memory", "stage", "fits", "down s", "work s", "up s", "first s"]
    table = plain_table(
        "a round on each class of devices",
        columns,
        "fits: or the missing memory; down, work (local training) and up: of a later round; "
        "first: the stage's first round in all",
    )
    for device in fleet["devices"][:SHOWN]:
        memory = "no limit" if device["memory_bytes"] is None else format_bytes(device["memory_bytes"])
        labels = [str(stage["index"] + 1) for stage in device["stages"]] + [END_TO_END]
        heading = [device["name"], str(device["clients"]), memory]
        for label, stage in zip(labels, [*device["stages"], device["end_to_end"]], strict=True):
            table.add_row(*heading, label, *_device_cells(stage))
            heading = ["", "", ""]
    console.print(table)
    if len(fleet["devices"]) > SHOWN:
        console.print(f"and {len(fleet['devices']) - SHOWN} more: --json has them all", highlight=False)
    _print_rounds(fleet, console)


def _print_rounds(fleet: dict[str, Any], console: Console) -> None:
    columns = ["stage", "clients that can hold it", "slowest of them s", "mean round s"]
    table = plain_table("rounds", columns, "mean round: of the cohorts that the seed draws")
    labels = [str(stage["index"] + 1) for stage in fleet["stages"]] + [END_TO_END]
    for label, stage in zip(labels, [*fleet["stages"], fleet["end_to_end"]], strict=True):
        seconds = (stage["slowest_seconds"], stage["mean_round_seconds"])
        table.add_row(label, str(stage["eligible_clients"]), *("-" if s is None else _seconds(s) for s in seconds))
    console.print(table)
    clients = sum(device["clients"] for device in fleet["devices"])
    for label, key, stages in (
        ("the run", "hours", fleet["stages"]),
        (f"{END_TO_END} training", "end_to_end_hours", [fleet["end_to_end"]]),
    ):
        hours, holders = fleet["total"][key], min(stage["eligible_clients"] for stage in stages)
        takes = "is impossible: nobody can hold a stage" if hours is None else f"takes {hours:,.2f} hours"
        console.print(f"{label} {takes}; {holders} of {clients} clients can hold every stage", highlight=False)


def _device_cells(stage: dict[str, Any]) -> list[str]:
    missing, seconds = stage["missing_bytes"], stage["round_seconds"]
    fits = "yes" if not missing else f"-{format_bytes(missing)}"
    times = (seconds["download"], seconds["compute"], seconds["upload"], stage["first_round_seconds"])
    return [fits, *(_seconds(each) for each in times)]


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _classes(profiles: Sequence[DeviceProfile]) -> dict[DeviceProfile, list[int]]:
    """Clients by device; equal devices are one class."""
    classes: dict[DeviceProfile, list[int]] = defaultdict(list)
    for client, profile in enumerate(profiles):
        classes[profile].append(client)
    return dict(classes)


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def layer_table(planner: Planner, profiles: list[DeviceProfile]) -> dict[str, Any]:
    """Return costs by (l, t), trained layers of each client by l, and the depth that the fleet chooses.

    Args:
        planner: Planner of a run whose scheme offers choices.
        profiles: Devices of the clients.
    """
    scheme, most = planner.settings.scheme, max(planner.images)
    server = planner.federation(scheme, profiles).server
    fleet = server.participation.fleet
    assert fleet is not None
    variants = scheme.variants(planner.num_blocks, planner.settings.rounds)
    rows = []
    for *_, stage in variants:
        for choice in reversed(scheme.choices(stage)):
            row = {"depth": choice.depth, "trained": choice.num_trained}
            rows.append(row | asdict(planner.forecast(choice, most)))
    extents = device_extents(scheme, variants, fleet)
    trained = {stages[-1].depth: counts for stages, counts in zip(variants, extents, strict=True)}
    return {"images": most, "costs": rows, "trained_layers": trained, "depth": server.stages[-1].depth}


def print_layer_table(table: dict[str, Any], console: Console) -> None:
    """The costs, then how many clients train how many layers at each depth."""
    columns = ["depth", "trained", "peak MiB", "up MiB", "GMACs"]
    caption = f"trained: last layers, or adapters of each; up, GMACs: of a round with {table['images']} images"
    printed = plain_table("what clients can train", columns, caption)
    for row in table["costs"]:
        sizes = (amount(row[key] / MIB) for key in ("peak_memory_bytes", "active_bytes"))
        printed.add_row(str(row["depth"]), str(row["trained"]), *sizes, f"{row['macs'] / 1e9:.2f}")
    console.print(printed)
    for depth, counts in table["trained_layers"].items():
        clients = ", ".join(f"{number} train {count}" for count, number in sorted(Counter(counts).items()))
        mean = sum(counts) / len(counts)
        mark = " (chosen)" if depth == table["depth"] else ""
        console.print(f"depth {depth}: mean {mean:.2f}; clients: {clients}{mark}", highlight=False)
