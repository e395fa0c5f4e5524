"""Fleet: devices of the clients, a virtual clock and the deadline of rounds; the time that a run takes on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fedssl.costs.prediction import Forecast
from fedssl.devices.profile import DeviceProfile
from fedssl.protocol.messages import Failure, Result, num_bytes
from fedssl.utils.units import format_bytes
from layerwise import Stage

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
        # Where training takes no time, the transfer alone is too long, and nothing arrives.
        share = max(0.0, self.seconds - transfer_seconds) / training_seconds if training_seconds else 0.0
        spent = int(result.macs * share)
        finished = int(len(result.parts) * share + ROUNDING) if self.late == "send_finished_layers" else 0
        if not finished:
            return Failure(result.client_id, f"not done after {self.seconds:g} s", late=True, macs=spent)
        names = list(result.parts)[-finished:]
        return replace(result, parts={name: result.parts[name] for name in names}, macs=spent)


EMPTY_ROUND_SECONDS = 60.0
"""Seconds that the server waits when nobody can be reached, if no deadline is set."""


@dataclass(frozen=True)
class Delivery:
    """Outcome of a client's work, and the second of the round at which it arrives."""

    result: Result | Failure
    seconds: float


@dataclass(frozen=True)
class Eligibility:
    """Number of clients that can train a stage.

    Args:
        stage: Index of the stage.
        need_bytes: Peak memory of a local step on the client with the largest batches, in bytes.
        eligible: Number of clients whose device has the memory for its own batches and meets the other limits.
        clients: Number of all clients.
        images: Fraction of all images that the eligible clients hold.
    """

    stage: int
    need_bytes: int
    eligible: int
    clients: int
    images: float

    def __str__(self) -> str:
        missing = self.clients - self.eligible
        why = f"; {missing} have less memory or tighter limits" if missing else ""
        return (
            f"stage {self.stage + 1} needs {format_bytes(self.need_bytes)}: {self.eligible} of {self.clients} devices "
            f"can take part, with {self.images:.0%} of the images{why}"
        )


class Fleet:
    """Devices of all clients on a virtual clock: eligibility, availability and duration of rounds.

    Args:
        profiles: Device of every client.
        images: Number of images of every client.
        forecast: Function that predicts the needs of a stage on a client.
        deadline: Deadline that ends a round early; ``None`` waits for everybody.

    Attributes:
        now: Seconds on the virtual clock since the run began.
    """

    def __init__(
        self, profiles: list[DeviceProfile], images: list[int], forecast: Forecast, deadline: Deadline | None
    ) -> None:
        self.profiles = profiles
        self.images = list(images)
        self.deadline = deadline
        self.now = 0.0
        self._forecast = forecast

    def eligibility(self, stages: list[Stage]) -> list[Eligibility]:
        """Return the number of devices that can train each stage, and the memory that it needs."""
        found = []
        for stage in stages:
            holding = [client for client in range(len(self.profiles)) if self.holds(client, stage)]
            need = max(self._need(client, stage) for client in range(len(self.profiles)))
            images = sum(self.images[client] for client in holding) / max(1, sum(self.images))
            found.append(Eligibility(stage.index, need, len(holding), len(self.profiles), images))
        return found

    def check(self, stages: list[Stage]) -> None:
        """Check that every stage fits on some device.

        Raises:
            ValueError: A stage fits on no device; the message names the shortage.
        """
        for stage in stages:
            least = min(self.shortage(client, stage) for client in range(len(self.profiles)))
            if least:
                raise ValueError(
                    f"no device can hold stage {stage.index + 1}: the one that comes nearest lacks "
                    f"{least}; use a smaller batch, fewer blocks a stage or other devices"
                )

    def holds(self, client: int, stage: Stage) -> bool:
        """Return True if a client's memory suffices for a stage, and its limits of upload and operations do."""
        # A device without limits needs no forecast, for which steps would have to be run.
        return not self.profiles[client].limited or not self.shortage(client, stage)

    def shortage(self, client: int, stage: Stage) -> Shortage:
        """Return the shortage of a client's device for a round of a stage."""
        return shortage(self._forecast(stage, self.images[client]), self.profiles[client])

    def choose(self, client: int, variants: Sequence[Stage]) -> int | None:
        """Return the position of the first variant that a client's device can train; ``None`` if it can train none."""
        return next((position for position, stage in enumerate(variants) if self.holds(client, stage)), None)

    def reachable(self, rng: np.random.Generator) -> list[bool]:
        """Draw the devices that can be reached now."""
        # One for every device, whatever its availability, so that a change of one leaves the others' draws alone.
        draws = rng.random(len(self.profiles))
        return [u < profile.available(self.now) for u, profile in zip(draws.tolist(), self.profiles, strict=True)]

    def expected_seconds(self, client: int, stage: Stage) -> float:
        """Predict the duration of a round on a device that already holds the frozen layers, in seconds."""
        need = self._forecast(stage, self.images[client])
        return self.profiles[client].seconds(need.active_bytes, need.macs, need.active_bytes)

    def deliver(self, result: Result, down_bytes: int) -> Delivery:
        """Return the part of a result that arrives, given the bytes that its client received first."""
        profile, up_bytes = self.profiles[result.client_id], num_bytes(result.parts)
        whole = profile.seconds(down_bytes, result.macs, up_bytes)
        if not self.deadline:
            return Delivery(result, whole)
        transfer = profile.seconds(down_bytes, 0, up_bytes)
        arrived = self.deadline.cut(result, transfer, whole - transfer)
        return Delivery(arrived, min(whole, self.deadline.seconds))

    def advance(self, seconds: list[float]) -> float:
        """Advance the clock to the end of a round, when its last client is done; return the round's duration."""
        # An empty round takes time too: were the clock to stand still, devices that are off now would never come back.
        waiting = self.deadline.seconds if self.deadline else EMPTY_ROUND_SECONDS
        duration = max(seconds) if seconds else waiting
        self.now += duration
        return duration

    def state_dict(self) -> dict[str, Any]:
        """Return the clock."""
        return {"now": self.now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of ``state_dict``."""
        self.now = state["now"]

    def _need(self, client: int, stage: Stage) -> int:
        return self._forecast(stage, self.images[client]).peak_memory_bytes


if TYPE_CHECKING:
    from fedssl.costs.prediction import Need


@dataclass(frozen=True, order=True)
class Shortage:
    """Excess of a round over the limits of a device; 0 where it stays within them.

    Args:
        memory_bytes: Missing memory at the peak of a local step, in bytes.
        upload_bytes: Excess upload of a round, in bytes.
        macs: Excess multiply-accumulates of a round's local training.
    """

    memory_bytes: float
    upload_bytes: float
    macs: float

    def __bool__(self) -> bool:
        return bool(self.memory_bytes or self.upload_bytes or self.macs)

    def __str__(self) -> str:
        lacking = [format_bytes(self.memory_bytes)] if self.memory_bytes else []
        lacking += [f"{format_bytes(self.upload_bytes)} of upload a round"] if self.upload_bytes else []
        lacking += [f"{self.macs:,.0f} multiply-accumulates a round"] if self.macs else []
        return " and ".join(lacking) or "nothing"


def shortage(need: Need, profile: DeviceProfile) -> Shortage:
    """Return the shortage of a device for the needs of a round."""
    return Shortage(
        max(0, need.peak_memory_bytes - profile.memory_bytes),
        max(0, need.active_bytes - profile.upload_limit_bytes),
        max(0, need.macs - profile.macs_limit),
    )
