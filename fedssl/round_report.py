"""What happened in one communication round."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedssl.messages import Failure
from layerwise import PaceReading


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    Args:
        round: Communication round, from 0.
        stage: Index of its stage.
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
    """

    round: int
    stage: int
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


def round_metrics(report: RoundReport) -> dict[str, float]:
    """The numbers of a report under the keys that loggers get."""
    metrics: dict[str, float] = {
        "round": report.round,
        "stage": report.stage,
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
