"""Plan on a fleet of devices: memory that each can hold, duration of rounds, layers that each can train."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from fedssl.costs.prediction import Need
from fedssl.devices import DeviceProfile, device_extents
from fedssl.federation.dry import DryRound, dry_rounds
from fedssl.planning.plan import Planner
from fedssl.server.participation import Participation
from layerwise import Scheme, Stage, reference_scheme


@dataclass(frozen=True)
class StageTraffic:
    """Bytes that a client which takes part in every round receives, and sends, in a round of a stage.

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
    classes: dict[DeviceProfile, list[int]] = defaultdict(list)
    for client, profile in enumerate(profiles):
        classes[profile].append(client)
    devices = []
    for profile, clients in classes.items():
        stages = [run.device(profile, clients, i) | {"index": stage.index} for i, stage in enumerate(run.stages)]
        # JSON has no infinity.
        memory = None if math.isinf(profile.memory_bytes) else profile.memory_bytes
        known = {"name": profile.name, "clients": len(clients), "memory_bytes": memory}
        devices.append(known | {"stages": stages, "end_to_end": whole.device(profile, clients, 0)})
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
        choose, clients = server.participation.choose, range(len(profiles))
        chosen = [[choose(client, variants) for client in clients] for variants in self._variants]
        self._eligible = [[client for client in clients if each[client] is not None] for each in chosen]
        # A device that can hold no variant is shown with what the least one lacks.
        self._chosen = [
            [len(variants) - 1 if at is None else at for at in each]
            for variants, each in zip(self._variants, chosen, strict=True)
        ]
        self._known: dict[tuple[int, ...], list[StageTraffic]] = {}
        self._seconds = [(each.report.stage, each.report.seconds or 0.0) for each in dry_rounds(federation)]

    def device(self, profile: DeviceProfile, clients: Sequence[int], position: int) -> dict[str, Any]:
        """Return what a stage asks of a class of devices: its largest memory, and the rounds of its slowest client.

        Clients of a class differ if they have different images, by which they may train different variants.
        """
        asked = [(self._need(client, position), self._traffic(client)[position]) for client in clients]
        memory = max(need.peak_memory_bytes for need, _ in asked)
        rounds = [
            {
                "download": profile.seconds(traffic.later, 0, 0),
                "compute": profile.seconds(0, need.macs, 0),
                "upload": profile.seconds(0, 0, traffic.up),
            }
            for need, traffic in asked
        ]
        slowest = max(rounds, key=lambda seconds: sum(seconds.values()))
        return {
            "peak_memory_bytes": memory,
            "missing_bytes": max(0, memory - profile.memory_bytes),
            "round_seconds": slowest | {"total": sum(slowest.values())},
            "first_round_seconds": max(profile.seconds(each.first, need.macs, each.up) for need, each in asked),
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

    def _need(self, client: int, position: int) -> Need:
        stage = self._variants[position][self._chosen[position][client]]
        return self._planner.forecast(stage, self._planner.images[client])

    def _traffic(self, client: int) -> list[StageTraffic]:
        """Return a client's traffic if it takes part in every round, beside one that trains the most."""
        own = tuple(chosen[client] for chosen in self._chosen)
        if own not in self._known:
            # Parts that nobody trains stay as they are, and a client that holds them would not receive them again.
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
