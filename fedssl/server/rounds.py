"""What happens in one communication round."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from fedssl.protocol.messages import Failure, Result, Task, num_bytes
from fedssl.server.participation import Cohort
from layerwise import PaceReading


@dataclass(frozen=True)
class OpenRound:
    """What the server notes of a round until its end.

    Args:
        cohort: Its clients.
        lr_factor: Factor of their learning rate.
        asked: Parts that each client was asked to train, in forward order, the heads last.
        down_bytes: Sent to each client.
        up_bytes: Received from each client whose update counts.
        seconds: Until each client was done, on the virtual clock.
    """

    cohort: Cohort = Cohort(())  # noqa: RUF009 (frozen)
    lr_factor: float = 1.0
    asked: dict[int, list[str]] = field(default_factory=dict)
    down_bytes: dict[int, int] = field(default_factory=dict)
    up_bytes: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def sent(self, task: Task) -> int:
        """Note a task and return its bytes."""
        sent = num_bytes(task.active) + num_bytes(task.frozen) + num_bytes(task.correction)
        self.asked[task.client_id] = list(task.active)
        self.down_bytes[task.client_id] = self.down_bytes.get(task.client_id, 0) + sent
        return sent


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    Args:
        round: Communication round, from 0.
        stage: Index of its stage.
        lr_factor: Factor of the clients' learning rate.
        trained: Clients whose results were aggregated.
        dropped: Clients that were selected but could not be reached.
        ineligible: Clients whose memory cannot hold the stage.
        unavailable: Clients whose device was out of reach.
        failures: Clients that took part but gave nothing usable, with the reason.
        late: Clients that had nothing ready at the deadline.
        loss: Mean training loss weighted by images; NaN in an empty round.
        down_bytes: Sent to all clients of the round.
        up_bytes: Received from them.
        macs: Of all clients of the round.
        activation_bytes: Largest of any client's step.
        calibration_loss: Mean loss of the server's calibration; ``None`` if there was none.
        seconds: Duration on the virtual clock; ``None`` without devices.
        pace: What the pace controller saw; ``None`` without one or in an empty round.
        distance: L2 distance between two local models, see ``ClientDistance``; NaN if it was not measured.
    """

    round: int
    stage: int
    lr_factor: float
    trained: tuple[int, ...]
    dropped: tuple[int, ...]
    ineligible: tuple[int, ...]
    unavailable: tuple[int, ...]
    failures: tuple[Failure, ...]
    late: tuple[Failure, ...]
    loss: float
    down_bytes: int
    up_bytes: int
    macs: int
    activation_bytes: int
    calibration_loss: float | None
    seconds: float | None
    pace: PaceReading | None
    distance: float = math.nan


def round_metrics(report: RoundReport) -> dict[str, float]:
    """Return the numbers of a report under the keys that loggers get."""
    metrics: dict[str, float] = {
        "round": report.round,
        "stage": report.stage,
        "client/lr_factor": report.lr_factor,
        "client/participants": len(report.trained),
        "client/dropped": len(report.dropped),
        "client/failed": len(report.failures),
        "cost/down_bytes": report.down_bytes,
        "cost/up_bytes": report.up_bytes,
        "cost/macs": report.macs,
        "cost/peak_activation_bytes": report.activation_bytes,
    }
    if not math.isnan(report.loss):
        metrics["client/loss"] = report.loss
    if not math.isnan(report.distance):
        metrics["client/distance"] = report.distance
    if report.calibration_loss is not None:
        metrics["server/calibration_loss"] = report.calibration_loss
    if report.seconds is not None:
        metrics |= {
            "client/ineligible": len(report.ineligible),
            "client/unavailable": len(report.unavailable),
            "client/late": len(report.late),
            "time/simulated_round_seconds": report.seconds,
        }
    return metrics | (_pace_metrics(report.pace) if report.pace else {})


def _pace_metrics(reading: PaceReading) -> dict[str, float]:
    known = {"perturbation": reading.perturbation, "smoothed": reading.smoothed, "slope": reading.slope}
    decision = {"pace/flat_rounds": reading.converged, "pace/freeze": int(reading.freeze)}
    return decision | {f"pace/{name}": value for name, value in known.items() if value is not None}


@dataclass
class ClientCost:
    """Totals of one client.

    Args:
        rounds: Rounds whose result counted.
        down_bytes: Received from the server.
        up_bytes: Sent to the server.
        macs: Multiply-accumulates of local training.
        activation_bytes: Largest number of bytes kept for backward in one step.
    """

    rounds: int = 0
    down_bytes: int = 0
    up_bytes: int = 0
    macs: int = 0
    activation_bytes: int = 0


class Ledger:
    """Costs by client."""

    def __init__(self) -> None:
        self.clients: dict[int, ClientCost] = {}

    def sent(self, client_id: int, num_bytes: int) -> None:
        """Book bytes that went to a client."""
        self._of(client_id).down_bytes += num_bytes

    def lost(self, failure: Failure) -> None:
        """Book what a client computed in vain."""
        self._of(failure.client_id).macs += failure.macs

    def received(self, result: Result, num_bytes: int) -> None:
        """Book a client's result."""
        cost = self._of(result.client_id)
        cost.rounds += 1
        cost.up_bytes += num_bytes
        cost.macs += result.macs
        cost.activation_bytes = max(cost.activation_bytes, result.activation_bytes)

    def summary(self) -> dict[str, float]:
        """Return the mean over clients and the largest client of each cost."""
        summary: dict[str, float] = {}
        for name in ("down_bytes", "up_bytes", "macs"):
            values = [getattr(cost, name) for cost in self.clients.values()] or [0]
            summary[f"{name}_per_client"] = sum(values) / len(values)
            summary[f"{name}_max_client"] = max(values)
        peaks = [cost.activation_bytes for cost in self.clients.values()]
        return summary | {"peak_activation_bytes": max(peaks, default=0)}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers by client."""
        return {str(client): asdict(cost) for client, cost in self.clients.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.clients = {int(client): ClientCost(**cost) for client, cost in state.items()}

    def _of(self, client_id: int) -> ClientCost:
        return self.clients.setdefault(client_id, ClientCost())
