"""Memory plans of the clients' local training."""

from __future__ import annotations

from collections.abc import Callable

from fedssl.alignment import Alignment
from fedssl.memory.planner import StepPlanner
from fedssl.memory.rehearsal import WITH_MEMORY, Rehearsal, StepState, place_of
from fedssl.messages import Task
from fedssl.seeding import derive_seed
from layerwise.memory import PlannedStep
from ssl_methods import Method

Budget = Callable[[int, int], float]
"""Bytes of a client in a round."""


class ClientPlans:
    """Gives clients plans for their local steps.

    Args:
        planner: Makes the plans.
        budget: Of each client in each round.
        seed: Of the run; stochastic rounding draws from it, the round and the client.
        changing: Whether a budget may be too small in one round and large enough in another.
    """

    def __init__(self, planner: StepPlanner, budget: Budget, seed: int, changing: bool = False) -> None:
        self.planner = planner
        self.changing = changing
        self._budget = budget
        self._seed = seed

    def begin(self, task: Task, method: Method, alignment: Alignment | None, memory: bool) -> ClientSteps:
        """The steps of one client in one round.

        Args:
            task: What it does.
            method: Attached to the task's stage, with its loss terms.
            alignment: The representation alignment among them, if any.
            memory: Whether the client has one.
        """
        state = StepState(method, alignment)
        kind = f"{WITH_MEMORY if memory or not alignment else 'without memory'}, {place_of(method)}"
        rehearsal = Rehearsal(lambda: state, kind, self.planner.shape)
        budget = self._budget(task.client_id, task.round)
        return ClientSteps(self.planner, task, budget, rehearsal, state, self._seed)


class ClientSteps:
    """Plans for the local steps of one client in one round, by batch size."""

    def __init__(
        self,
        planner: StepPlanner,
        task: Task,
        budget: float,
        rehearsal: Rehearsal,
        state: StepState,
        seed: int,
    ) -> None:
        self._planner = planner
        self._task = task
        self._budget = budget
        self._rehearsal = rehearsal
        self._state = state
        self._seed = seed
        self._steps: dict[int, PlannedStep | None] = {}

    def __call__(self, batch_size: int) -> PlannedStep | None:
        """What carries out the plan for a batch size; ``None`` if it fits as it is.

        Raises:
            InfeasibleBudgetError: It does not fit with any plan.
        """
        if batch_size not in self._steps:
            self._steps[batch_size] = self._make(batch_size)
        return self._steps[batch_size]

    @property
    def kind(self) -> str:
        """Tells steps with this budget from others, in the book of costs."""
        return f", in {self._budget:.0f} bytes"

    def _make(self, batch_size: int) -> PlannedStep | None:
        task = self._task
        planned = self._planner.plan(task.stage, batch_size, self._budget, self._rehearsal)
        if planned is None:
            return None
        seed = derive_seed(self._seed, "compress", task.round, task.client_id, batch_size)
        return PlannedStep(planned.plan, planned.trace, self._state, seed)
