"""What happens to clients that are not done when the server stops waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fedssl.protocol.messages import Failure, Result

ROUNDING = 1e-9
"""What a product of a share and a number may be too small by."""

Late = Literal["drop", "send_finished_layers"]


@dataclass(frozen=True)
class Deadline:
    """Ends every round after a fixed time of the virtual clock.

    Args:
        seconds: From the begin of the download to the end of the upload.
        late: What a late client does: ``drop`` gives nothing; ``send_finished_layers`` sends the last layers, which
            backpropagation finishes first (SALF, arXiv 2403.18375). Of L trained layers it has finished the last
            ``floor(L x)``, where x is the share of its local training that fits before the deadline with time left to
            send everything. The paper has one local step a round; the share of several steps is our reading.
    """

    seconds: float
    late: Late = "drop"

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"deadline.seconds must be above 0 and finite, got {self.seconds}")
        if self.late not in get_args(Late):
            raise ValueError(f"deadline.late must be one of {', '.join(get_args(Late))}, got {self.late!r}")

    def cut(self, result: Result, transfer_seconds: float, training_seconds: float) -> Result | Failure:
        """What has arrived of a result at the deadline.

        Args:
            result: With its parts in the order of the forward pass.
            transfer_seconds: Download and upload.
            training_seconds: Local training.
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
