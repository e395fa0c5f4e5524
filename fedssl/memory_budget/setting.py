"""What ``memory_budget`` of a run means for each of its clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from fedssl.costs.forecast import largest_batch, step_sizes
from fedssl.costs.prediction import StepPredictor
from fedssl.devices import DeviceProfile
from fedssl.memory_budget.availability import Availability
from fedssl.memory_budget.planner import ActivationPlanner, ActivationPlans
from fedssl.utils.units import parse_bytes
from layerwise import Stage
from layerwise.memory import WIDTHS

DEVICE, AVAILABLE = "device", "available"
BITS = {f"{bits} bits": bits for bits in WIDTHS}
ALLOWED = f"a size, {DEVICE!r}, {AVAILABLE!r}, a list of sizes, or {', '.join(map(repr, BITS))}"


@dataclass(frozen=True)
class MemoryBudget:
    """The budget of the peak memory of clients' local steps.

    Args:
        size: Bytes of every client; infinite: none; ``None``: what each client's device has.
        availability: Gives the bytes of every client in each round instead, if set.
        bits: Keeps activations in this many bits instead, whatever the memory.
    """

    size: float | None = inf
    availability: Availability | None = None
    bits: int | None = None

    @classmethod
    def parse(cls, budget: str | list[str] | None, devices: Any) -> MemoryBudget:
        """Reads ``memory_budget``.

        Args:
            budget: A size such as ``300MiB``; ``device``; ``available``; the sizes that are available in the rounds; or
                ``4 bits`` for activations in so many bits.
            devices: The run's devices, if any.

        Raises:
            ValueError: It is none of these, or ``device`` comes without devices.
        """
        if budget is None:
            return cls()
        if isinstance(budget, str) and budget in BITS:
            return cls(0, bits=BITS[budget])
        if budget == DEVICE:
            if not devices:
                raise ValueError(f"memory_budget {DEVICE!r} needs devices, whose memory it is: set model.devices")
            return cls(None)
        if budget == AVAILABLE:
            return cls(availability=Availability(None))
        try:
            if isinstance(budget, str):
                return cls(parse_bytes(budget))
            if not budget:
                raise ValueError("got an empty list")
            return cls(availability=Availability([parse_bytes(size) for size in budget]))
        except ValueError as error:
            raise ValueError(f"memory_budget must be {ALLOWED}: {error}") from error

    def rule(
        self,
        predictor: Callable[[], StepPredictor],
        images: Sequence[int],
        batch_size: int,
        profiles: Sequence[DeviceProfile],
    ) -> ClientBudgets | None:
        """What the setting means for a run; ``None`` without a budget.

        Args:
            predictor: Makes a predictor of local steps.
            images: Images of each client.
            batch_size: Images a step.
            profiles: The clients' devices; empty without devices.
        """
        if self.size == inf and not self.availability:
            return None
        planner = ActivationPlanner(predictor(), largest_batch(images, batch_size), self.bits)
        return ClientBudgets(self, planner, step_sizes(images, batch_size), profiles)


class ClientBudgets:
    """A setting applied to the clients of a run.

    Args:
        setting: The setting.
        planner: Of the run's local steps.
        step_sizes: Images in the steps of the clients.
        profiles: The clients' devices; empty without devices.
    """

    def __init__(
        self,
        setting: MemoryBudget,
        planner: ActivationPlanner,
        step_sizes: Sequence[int],
        profiles: Sequence[DeviceProfile],
    ) -> None:
        self.planner = planner
        self._size = setting.size
        self._availability = setting.availability
        self._step_sizes = step_sizes
        self._profiles = profiles

    def budget(self, client: int, round_: int) -> float:
        """Bytes that a client may use."""
        if self._availability:
            return self._availability.budget(round_)
        return self._profiles[client].memory_bytes if self._size is None else self._size

    def need(self, stage: Stage, batch_size: int) -> int:
        """Memory that a device must have for a stage; plans are made only where some device has too little."""
        unplanned = self.planner.peak_without_plan(stage, batch_size)
        if self._size and not self._availability:
            return int(min(unplanned, self._size))
        enough = unplanned <= min((profile.memory_bytes for profile in self._profiles), default=inf)
        return unplanned if enough else self.planner.min_peak(stage, batch_size)

    def check(self, stages: Sequence[Stage]) -> None:
        """Plans every step that all clients have to keep within one lasting budget.

        Args:
            stages: As some client gets them.

        Raises:
            InfeasibleBudgetError: A step does not fit with any plan.
        """
        if self._size is None or self._availability:
            return
        for stage in stages:
            for batch_size in self._step_sizes:
                self.planner.plan(stage, batch_size, self._size)

    def plans(self, seed: int) -> ActivationPlans:
        """Of the clients' local training, in a run with this seed."""
        return ActivationPlans(self.planner, self.budget, seed, changing=self._availability is not None)
