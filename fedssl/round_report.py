"""What happened in one communication round."""

from __future__ import annotations

from dataclasses import dataclass

from fedssl.messages import Failure


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    Args:
        round: Communication round, from 0.
        stage: Index of its stage.
        trained: Clients whose results were aggregated.
        dropped: Clients that could not be reached.
        failures: Clients that took part but gave nothing usable, with the reason.
        loss: Mean training loss weighted by images; NaN in an empty round.
        down_bytes: Sent to all clients of the round.
        up_bytes: Received from them.
        macs: Of all clients of the round.
        activation_bytes: Largest of any client's step.
        calibration_loss: Mean loss of the server's calibration; ``None`` if there was none.
    """

    round: int
    stage: int
    trained: tuple[int, ...]
    dropped: tuple[int, ...]
    failures: tuple[Failure, ...]
    loss: float
    down_bytes: int
    up_bytes: int
    macs: int
    activation_bytes: int
    calibration_loss: float | None
