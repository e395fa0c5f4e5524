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
from fedssl.devices import DeviceProfile, Fleet, device_extents, fleet_stages
from fedssl.planning.plan import Planner
from fedssl.planning.table import MIB, amount, plain_table
from fedssl.planning.traffic import RoundPlayer, RoundTraffic
from fedssl.server.client_stage import typical_choices
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


def plan_fleet(planner: Planner, fleet: Fleet) -> dict[str, Any]:
    """Memory and time of every class of devices in every stage, and of the rounds that the run would have.

    Args:
        planner: Of the configured run.
        fleet: The clients' devices, with the clock at zero.
    """
    scheme = planner.module.scheme
    run, whole = _Run(planner, fleet, scheme), _Run(planner, fleet, reference_scheme())
    devices = []
    for profile, clients in _classes(fleet.profiles).items():
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
    """One scheme on the fleet."""

    def __init__(self, planner: Planner, fleet: Fleet, scheme: Scheme) -> None:
        self._planner = planner
        self._fleet = fleet
        self._scheme = scheme
        self.stages = fleet_stages(scheme, planner.num_blocks, planner.module.rounds, fleet)
        choices = [typical_choices(scheme, stage, planner.module.seed) for stage in self.stages]
        self._shares = [planner.shares(each, fleet) for each in choices]
        self._most = tuple(max(each, key=lambda share: share.extent) for each in self._shares)
        self._known: dict[tuple[Stage, ...], list[StageTraffic]] = {}
        fleet.now = 0.0
        self._played = planner.rounds(scheme, self.stages, fleet)

    def device(self, profile: DeviceProfile, clients: Sequence[int], position: int) -> dict[str, Any]:
        """What a stage asks of a class of devices; of its slowest client, where they have different images."""
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
        """How many clients can take part in a stage, and how long its rounds take; ``None`` if nobody can."""
        shares = self._shares[position]
        eligible = [client for client, share in enumerate(shares) if self._fleet.holds(client, share)]
        durations = []
        for client in eligible:
            traffic, macs = self._traffic(client)[position], self._need(client, position).macs
            durations.append(self._fleet.profiles[client].seconds(traffic.later, macs, traffic.up))
        drawn = [each.seconds for each in self._rounds_of(position) if each.seconds is not None]
        return {
            "eligible_clients": len(eligible),
            "slowest_seconds": max(durations, default=None),
            "mean_round_seconds": mean(drawn) if eligible else None,
        }

    def hours(self) -> float | None:
        """Of the whole run with the seed's cohorts; ``None`` if nobody can take part in some stage."""
        if any(self.rounds(position)["eligible_clients"] == 0 for position in range(len(self.stages))):
            return None
        return sum(each.seconds or 0.0 for each in self._played) / 3600

    def _rounds_of(self, position: int) -> list[RoundTraffic]:
        return [each for each in self._played if each.stage == position]

    def _need(self, client: int, position: int) -> Need:
        return self._planner.forecast(self._shares[position][client], self._planner.images[client])

    def _traffic(self, client: int) -> list[StageTraffic]:
        """Traffic of the stages for a client that takes part in every round, beside one that trains the most."""
        own = tuple(shares[client] for shares in self._shares)
        if own not in self._known:
            self._known[own] = self._play(own)
        return self._known[own]

    def _play(self, own: tuple[Stage, ...]) -> list[StageTraffic]:
        planner, module = self._planner, self._planner.module
        two = Participation([2, 2], 1.0, seed=module.seed)

        def share(client: int, choices: Sequence[Stage]) -> Stage:
            return next(stage for stage in (self._most if client else own) if stage in choices)

        player = RoundPlayer(planner.model, self._scheme, two, planner.forecast, module.calibration, module.seed, share)
        by_stage: dict[int, list[RoundTraffic]] = defaultdict(list)
        for each in player.play(self.stages):
            by_stage[each.stage].append(each)
        return [StageTraffic(each[0].down[0], each[-1].down[0], each[-1].up[0]) for each in by_stage.values()]


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


def layer_table(planner: Planner, fleet: Fleet) -> dict[str, Any]:
    """Costs by (l, t), trained layers of each client by l, and the depth that the fleet chooses.

    Args:
        planner: Of a run whose scheme offers choices.
        fleet: The clients' devices.
    """
    scheme, rounds, most = planner.module.scheme, planner.module.rounds, max(planner.images)
    variants = scheme.variants(planner.num_blocks, rounds)
    rows = []
    for *_, stage in variants:
        for choice in reversed(scheme.choices(stage)):
            row = {"depth": choice.depth, "trained": choice.extent}
            rows.append(row | asdict(planner.forecast(choice, most)))
    extents = device_extents(scheme, variants, fleet)
    trained = {stages[-1].depth: counts for stages, counts in zip(variants, extents, strict=True)}
    chosen = fleet_stages(scheme, planner.num_blocks, rounds, fleet)[-1].depth
    return {"images": most, "costs": rows, "trained_layers": trained, "depth": chosen}


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
