"""Memory plans of a run's local steps: made once for each kind of step and budget, and handed to clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.messages import Task
from fedssl.utils.seeding import derive_seed
from fedssl.utils.units import format_bytes
from layerwise import Stage
from layerwise.memory import ActivationPlan, InfeasibleBudgetError, PlannedStep, Search
from ssl_methods import Method

Budget = Callable[[int, int], float]
"""Bytes of a client in a round."""


class ActivationPlanner:
    """Plans local steps of a model, so that their peak memory is within a budget.

    A plan follows from the step and the budget alone, and smaller batches take the actions of the largest one where
    these suffice. So it does not matter which client needs a plan first, and a resumed run has the plans of the
    uninterrupted one.

    Args:
        predictor: Runs steps on tensors without data, with a plan and without.
        largest_batch: Most images in a step of any client.
        bits: Keeps activations in this many bits, whatever the budget; ``None`` looks for the best actions.
    """

    def __init__(self, predictor: StepPredictor, largest_batch: int, bits: int | None = None) -> None:
        self.predictor = predictor
        self._bits = bits
        self._largest = largest_batch
        self._search = cache(self._make_search)
        self._planned = cache(self._make_plan)

    def peak_without_plan(self, stage: Stage, batch_size: int) -> int:
        """Peak memory of a step without a plan."""
        return self.predictor(stage, batch_size).peak

    def min_peak(self, stage: Stage, batch_size: int) -> int:
        """Peak memory of a step with the plan that saves most."""
        search = self._search(self.predictor.canonical_stage(stage), batch_size)
        least = search.evenly(self._bits).peak if self._bits else search.min_peak()
        return min(self.peak_without_plan(stage, batch_size), least)

    def plan(self, stage: Stage, batch_size: int, budget: float) -> ActivationPlan | None:
        """The plan for a step; ``None`` if it needs none.

        Args:
            stage: The stage.
            batch_size: Images in the step.
            budget: Bytes that the step may take, everything counted that ``train.py plan`` counts.

        Raises:
            InfeasibleBudgetError: No plan meets the budget; the message names stage, batch and what can be reached.
        """
        unplanned = self.peak_without_plan(stage, batch_size)
        if unplanned <= budget:
            return None
        try:
            return self._planned(self.predictor.canonical_stage(stage), batch_size, int(budget))
        except InfeasibleBudgetError as error:
            least = error.floor_bytes
            raise InfeasibleBudgetError(
                f"memory budget {format_bytes(int(budget))} is too small for stage {stage.index + 1} with {batch_size} "
                f"images a step: {format_bytes(least)} ({least} bytes) can be reached, "
                f"{format_bytes(unplanned)} are needed without a memory plan",
                least,
            ) from error

    def _make_search(self, form: Stage, batch_size: int) -> Search:
        return Search(partial(self.predictor.fake_step(form).planned, batch_size))

    def _make_plan(self, form: Stage, batch_size: int, budget: int) -> ActivationPlan:
        search = self._search(form, batch_size)
        if self._bits:
            return search.evenly(self._bits)
        if batch_size < self._largest:
            try:
                plan = search.priced(self._planned(form, self._largest, budget).actions)
            except InfeasibleBudgetError:
                return search.fastest(budget)
            if plan.peak <= budget:
                return plan
        return search.fastest(budget)


@dataclass(frozen=True)
class ActivationPlans:
    """Gives clients plans for their local steps.

    Args:
        planner: Makes the plans.
        budget: Of each client in each round.
        seed: Of the run; stochastic rounding draws from it, the round and the client.
        changing: Whether a budget may be too small in one round and large enough in another.
    """

    planner: ActivationPlanner
    budget: Budget
    seed: int
    changing: bool = False

    def begin(self, task: Task, method: Method) -> RoundPlans:
        """The steps of one client in one round, by a method that is attached to the task's stage."""
        return RoundPlans(self, task, method)


class RoundPlans:
    """Plans for the local steps of one client in one round, by batch size."""

    def __init__(self, plans: ActivationPlans, task: Task, method: Method) -> None:
        self._plans, self._task, self._method = plans, task, method
        self._budget = plans.budget(task.client_id, task.round)
        self._step = cache(self._make)

    def __call__(self, batch_size: int) -> PlannedStep | None:
        """A context around forward and backward of a step; ``None`` if it fits as it is.

        Raises:
            InfeasibleBudgetError: It does not fit with any plan.
        """
        return self._step(batch_size)

    @property
    def budget(self) -> int:
        """Bytes that the steps are kept within."""
        return int(self._budget)

    def _make(self, batch_size: int) -> PlannedStep | None:
        task = self._task
        plan = self._plans.planner.plan(task.stage, batch_size, self._budget)
        if plan is None:
            return None
        seed = derive_seed(self._plans.seed, "compress", task.round, task.client_id, batch_size)
        return PlannedStep(self._method, plan.actions, seed)
