"""Memory plans of a run's local steps: made once for each kind of step and budget, and handed to clients."""

from __future__ import annotations

from functools import cache, partial

from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.messages import Task
from fedssl.utils.seeding import derive_seed
from fedssl.utils.units import format_bytes
from layerwise import Stage
from layerwise.memory import ActivationPlan, InfeasibleBudgetError, PlannedStep, Search
from ssl_methods import Method


class ActivationPlanner:
    """Planner of a model's local steps, so that their peak memory is within a budget.

    A plan follows from the step and the budget alone, and smaller batches take the actions of the largest one where
    these suffice. So it does not matter which client needs a plan first, and a resumed run has the plans of the
    uninterrupted one.

    Args:
        predictor: Runs steps on tensors without data, with a plan and without.
        largest_batch: Images in the largest step of any client.
        bits: Bits in which activations are kept, whatever the budget; ``None`` looks for the best actions.
    """

    def __init__(self, predictor: StepPredictor, largest_batch: int, bits: int | None = None) -> None:
        self.predictor = predictor
        self._bits = bits
        self._largest = largest_batch
        self._search = cache(self._make_search)
        self._planned = cache(self._make_plan)

    def peak_without_plan(self, stage: Stage, batch_size: int) -> int:
        """Return the peak memory of a step without a plan."""
        return self.predictor(stage, batch_size).peak

    def min_peak(self, stage: Stage, batch_size: int) -> int:
        """Return the peak memory of a step with the plan that saves most."""
        search = self._search(self.predictor.canonical_stage(stage), batch_size)
        least = search.evenly(self._bits).peak if self._bits else search.min_peak()
        return min(self.peak_without_plan(stage, batch_size), least)

    def plan(self, stage: Stage, batch_size: int, budget: float) -> ActivationPlan | None:
        """Return the plan for a step; ``None`` if it needs none.

        Args:
            stage: Stage of the step.
            batch_size: Images in the step.
            budget: Bytes that the step may take, everything counted that ``train.py plan`` counts.

        Raises:
            InfeasibleBudgetError: No plan meets the budget; the message names stage, batch and what can be reached.
        """
        unplanned = self.peak_without_plan(stage, batch_size)
        if unplanned <= budget:
            return None
        try:
            # Keys of the cache: a stage with the same steps finds the plan of an earlier one.
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
        # Fixed bits come with a budget of 0 bytes, which only says that every step gets a plan.
        if self._bits:
            return search.evenly(self._bits)
        # The last batch of an epoch is smaller: the largest one's actions serve it too, if they suffice.
        if batch_size < self._largest:
            try:
                plan = search.priced(self._planned(form, self._largest, budget).actions)
            except InfeasibleBudgetError:
                return search.fastest(budget)
            if plan.peak <= budget:
                return plan
        return search.fastest(budget)


class RoundPlans:
    """Plans for the local steps of one client in one round, by batch size.

    Args:
        planner: Makes the plans.
        task: Task of the client.
        method: Method that is attached to the task's stage.
        budget: Bytes that a step may take.
        seed: Seed of the run; stochastic rounding draws from it, the round, the client and the batch size.
    """

    def __init__(self, planner: ActivationPlanner, task: Task, method: Method, budget: float, seed: int) -> None:
        self._planner, self._task, self._method = planner, task, method
        self._budget, self._seed = budget, seed
        # One a batch size, since the random numbers of its rounding continue from step to step.
        self._step = cache(self._make)

    def __call__(self, batch_size: int) -> PlannedStep | None:
        """Return a context around forward and backward of a step; ``None`` if the step fits as it is.

        Raises:
            InfeasibleBudgetError: The step fits with no plan.
        """
        return self._step(batch_size)

    @property
    def budget(self) -> int:
        """Bytes that the steps are kept within."""
        return int(self._budget)

    def _make(self, batch_size: int) -> PlannedStep | None:
        task = self._task
        plan = self._planner.plan(task.stage, batch_size, self._budget)
        if plan is None:
            return None
        seed = derive_seed(self._seed, "compress", task.round, task.client_id, batch_size)
        return PlannedStep(self._method, plan.actions, seed)
