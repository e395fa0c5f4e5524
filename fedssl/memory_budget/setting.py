"""Setting ``memory_budget``, and the budgets that it gives to the clients of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from fedssl.costs.prediction import StepPredictor
from fedssl.devices import DeviceProfile
from fedssl.memory_budget.availability import Availability
from fedssl.memory_budget.planner import ActivationPlanner, RoundPlans
from fedssl.protocol.messages import Task
from fedssl.utils.units import parse_bytes
from layerwise import Stage
from layerwise.memory import WIDTHS
from ssl_methods import Method

DEVICE, AVAILABLE = "device", "available"
BITS = {f"{bits} bits": bits for bits in WIDTHS}
ALLOWED = f"a size, {DEVICE!r}, {AVAILABLE!r}, a list of sizes, or {', '.join(map(repr, BITS))}"


@dataclass(frozen=True)
class MemoryBudget:
    """Budget of the peak memory of clients' local steps.

    Args:
        size: Bytes of every client; infinite for no budget, ``None`` for the memory of each client's device.
        availability: Source of the bytes of every client in each round, which takes the place of ``size``.
        bits: Bits in which activations are kept, whatever the memory.
    """

    size: float | None = inf
    availability: Availability | None = None
    bits: int | None = None

    @classmethod
    def parse(cls, budget: str | list[str] | None, devices: Any) -> MemoryBudget:
        """Read ``memory_budget``.

        Args:
            budget: A size such as ``300MiB``; ``device``; ``available``; the sizes that are available in the rounds; or
                ``4 bits`` for activations in so many bits.
            devices: Devices of the run, if any.

        Raises:
            ValueError: The setting is none of these, or ``device`` comes without devices.
        """
        if budget is None:
            return cls()
        if isinstance(budget, str) and budget in BITS:
            # No step fits into 0 bytes, so each gets a plan, and the bits say which.
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

    def for_clients(
        self, predictor: Callable[[], StepPredictor], steps: Sequence[int], profiles: Sequence[DeviceProfile], seed: int
    ) -> ClientBudgets | None:
        """Apply the setting to the clients of a run; ``None`` without a budget.

        Args:
            predictor: Makes a predictor of local steps.
            steps: Images in the steps of the clients.
            profiles: Devices of the clients; empty without devices.
            seed: Seed of the run.
        """
        if self.size == inf and not self.availability:
            return None
        planner = ActivationPlanner(predictor(), max(steps, default=2), self.bits)
        return ClientBudgets(self, planner, steps, profiles, seed)


@dataclass(frozen=True)
class ClientBudgets:
    """Memory budget applied to the clients of a run.

    Args:
        setting: Setting of the run.
        planner: Planner of the run's local steps.
        steps: Images in the steps of the clients.
        profiles: Devices of the clients; empty without devices.
        seed: Seed of the run, from which stochastic rounding draws.
    """

    setting: MemoryBudget
    planner: ActivationPlanner
    steps: Sequence[int]
    profiles: Sequence[DeviceProfile]
    seed: int

    @property
    def changing(self) -> bool:
        """True if a budget may be too small in one round and large enough in another."""
        return self.setting.availability is not None

    def budget(self, client: int, round_: int) -> float:
        """Return the bytes that a client may use in a round."""
        if self.setting.availability:
            return self.setting.availability.budget(round_)
        return self.profiles[client].memory_bytes if self.setting.size is None else self.setting.size

    def need(self, stage: Stage, batch_size: int) -> int:
        """Return the memory that a device must have for a stage; plans are made only where some device has less."""
        unplanned = self.planner.peak_without_plan(stage, batch_size)
        # 0 asks for fixed bits and ``None`` for the devices' own memory: neither says what a device must have.
        if self.setting.size and not self.changing:
            return int(min(unplanned, self.setting.size))
        enough = unplanned <= min((profile.memory_bytes for profile in self.profiles), default=inf)
        return unplanned if enough else self.planner.min_peak(stage, batch_size)

    def check(self, stages: Sequence[Stage]) -> None:
        """Plan every step that all clients have to keep within one lasting budget.

        Args:
            stages: Stages as some client gets them.

        Raises:
            InfeasibleBudgetError: A step fits with no plan.
        """
        # Budgets of devices decide who takes part, and those that change who sits a round out: nothing is refused.
        if self.setting.size is None or self.changing:
            return
        for stage in stages:
            for batch_size in self.steps:
                self.planner.plan(stage, batch_size, self.setting.size)

    def begin(self, task: Task, method: Method) -> RoundPlans:
        """Return the plans of one client in one round, for a method that is attached to the task's stage."""
        return RoundPlans(self.planner, task, method, self.budget(task.client_id, task.round), self.seed)
