"""Deadline of a round, and the treatment of clients that miss it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fedssl.protocol.messages import Failure, Result

ROUNDING = 1e-9
"""Tolerance for a product of a fraction and a number that is rounded too low."""

Late = Literal["drop", "send_finished_layers"]


@dataclass(frozen=True)
class Deadline:
    """Deadline that ends every round after a fixed time of the virtual clock.

    Args:
        seconds: Seconds from the start of the download to the end of the upload.
        late: Treatment of late clients: ``drop`` discards their work; ``send_finished_layers`` takes the last layers,
            which backpropagation finishes first (SALF, arXiv 2403.18375). Of L trained layers a client has finished the
            last ``floor(L x)``, where x is the fraction of its local training that fits before the deadline with time
            left to send everything. The paper has one local step a round; the fraction of several steps is our reading.
    """

    seconds: float
    late: Late = "drop"

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"deadline.seconds must be above 0 and finite, got {self.seconds}")
        if self.late not in get_args(Late):
            raise ValueError(f"deadline.late must be one of {', '.join(get_args(Late))}, got {self.late!r}")

    def cut(self, result: Result, transfer_seconds: float, training_seconds: float) -> Result | Failure:
        """Return the part of a result that has arrived at the deadline.

        Args:
            result: Result with its parts in the order of the forward pass.
            transfer_seconds: Seconds of download and upload.
            training_seconds: Seconds of local training.
        """
        if transfer_seconds + training_seconds <= self.seconds:
            return result
        share = max(0.0, self.seconds - transfer_seconds) / training_seconds if training_seconds else 0.0
        spent = int(result.macs * share)
        finished = int(len(result.parts) * share + ROUNDING) if self.late == "send_finished_layers" else 0
        if not finished:
            return Failure(result.client_id, f"not done after {self.seconds:g} s", late=True, macs=spent)
        names = list(result.parts)[-finished:]
        return replace(result, parts={name: result.parts[name] for name in names}, macs=spent)
