"""What a run will send, found by playing its rounds without training."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fedssl.calibration import Calibration
from fedssl.messages import num_bytes
from fedssl.model import SplitModel
from fedssl.participation import draw_cohort
from fedssl.seeding import numpy_generator
from layerwise import Stage


@dataclass(frozen=True)
class ClientTraffic:
    """Of one client in one stage.

    Args:
        rounds: Rounds it took part in.
        down_bytes: Received from the server.
        up_bytes: Sent to the server.
    """

    rounds: int
    down_bytes: int
    up_bytes: int


def play_rounds(
    model: SplitModel,
    stages: list[Stage],
    num_clients: int,
    cohort_size: int,
    dropout: float,
    calibration: Calibration | None,
    seed: int,
) -> list[list[ClientTraffic]]:
    """Traffic of every client, by stage.

    The cohorts are those that the run with this seed draws, and a frozen part is sent to a client exactly if it changed
    since the client received it, as :class:`fedssl.server.Server` does. Updates that fail are not foreseen.

    Returns:
        For each stage, one entry a client.
    """
    sizes = {name: num_bytes(model.read([name])) for name in model.modules}
    version: dict[str, int] = defaultdict(int)
    held: dict[int, dict[str, int]] = defaultdict(dict)
    traffic, round_ = [], 0
    for stage in stages:
        trained, frozen = model.trained_names(stage), model.frozen_names(stage)
        active = sum(sizes[name] for name in trained)
        rounds, down = [0] * num_clients, [0] * num_clients
        for position in range(stage.rounds):
            rng = numpy_generator(seed, "cohort", round_)
            cohort = draw_cohort(num_clients, cohort_size, dropout, rng).participants
            for client in cohort:
                missing = [name for name in frozen if held[client].get(name) != version[name]]
                held[client].update({name: version[name] for name in frozen})
                rounds[client] += 1
                down[client] += active + sum(sizes[name] for name in missing)
            last = position + 1 == stage.rounds
            calibrated = calibration is not None and calibration.due(bool(cohort), last)
            for name in [*trained, *(frozen if calibrated else [])]:
                version[name] += bool(cohort) or calibrated
            round_ += 1
        traffic.append([ClientTraffic(n, d, n * active) for n, d in zip(rounds, down, strict=True)])
    return traffic
