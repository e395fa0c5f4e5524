"""The costs of local steps, measured once for all steps that cost the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fedssl.utils.resources import Stopwatch
from layerwise import Stage, StepCost, StepMeter
from ssl_methods import Method


@dataclass(frozen=True, kw_only=True)
class StepKey:
    """Everything that decides what a step costs, in a run whose other settings stay the same.

    Args:
        stage: Index of the stage.
        extent: Trained blocks, or adapters or groups in each.
        blocks: Present blocks.
        batch_size: Images in the step; 0 until a batch is known.
        remembers: Whether the client remembers what its alignment compares with.
        banked: Whether the step gets stored outputs of the frozen prefix.
        fills_bank: Whether it makes these outputs, and trains nothing.
        budget: Bytes that a memory plan keeps the step within; ``None`` without a plan.
    """

    stage: int
    extent: int
    blocks: int
    batch_size: int = 0
    remembers: bool = False
    banked: bool = False
    fills_bank: bool = False
    budget: int | None = None

    @classmethod
    def at(cls, stage: Stage) -> StepKey:
        """Make the key of a plain step at a stage."""
        return cls(stage=stage.index, extent=stage.num_trained, blocks=len(stage.present))


class CostBook:
    """Cost of a step by its key, measured on the first one of each; times of all steps.

    Attributes:
        costs: The costs measured so far.
        times: Seconds of augmentation (reading and moving the images included), forward, backward and optimizer.
    """

    def __init__(self) -> None:
        self.costs: dict[StepKey, StepCost] = {}
        self.times = Stopwatch()

    def step(self, key: StepKey, method: Method, run: Callable[[], None]) -> StepCost:
        """Run one step and return its cost, counting it if there is none of its key yet."""
        if key in self.costs:
            run()
        else:
            with StepMeter([*method.parameters(), *method.buffers()]) as meter:
                run()
            self.costs[key] = meter.cost()
        return self.costs[key]

    def state_dict(self) -> dict[str, Any]:
        """Return costs and times in plain types."""
        return {
            "costs": [asdict(key) | asdict(cost) for key, cost in self.costs.items()],
            "seconds": self.times.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        known = [dict(row) for row in state["costs"]]
        costs = [StepCost(row.pop("macs"), row.pop("activation_bytes")) for row in known]
        self.costs = {StepKey(**row): cost for row, cost in zip(known, costs, strict=True)}
        self.times.restore(state["seconds"])
