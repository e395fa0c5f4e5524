"""Memory plans of a run's local steps: made once for each kind of step and budget."""

from __future__ import annotations

from dataclasses import dataclass

from fedssl.alignment import ProximalTerm
from fedssl.memory.rehearsal import WITH_MEMORY, Rehearsal, StepState, place_of
from fedssl.memory.unsaved import UnsavedStep
from fedssl.planning.prediction import StepPredictor
from fedssl.units import format_bytes
from layerwise import Stage
from layerwise.memory import (
    CHUNK,
    InfeasibleBudgetError,
    MemoryPlan,
    StepTrace,
    compress_evenly,
    plan_memory,
    transfer_plan,
)
from ssl_methods import SSLMethod

CODEC_BYTES = 12
"""Working memory of the codec for each value that it packs at a time."""


@dataclass(frozen=True)
class Planned:
    """A plan with the step that it is for.

    Args:
        plan: The plan.
        trace: The step.
        rest: Bytes that the step needs besides the activations that it keeps.
    """

    plan: MemoryPlan
    trace: StepTrace
    rest: int

    @property
    def peak(self) -> int:
        """Predicted peak memory of the step."""
        return self.plan.predicted_peak + self.rest

    @property
    def added_time(self) -> float:
        """Predicted added time as a share of the step's; backward counts as two forward passes."""
        return self.plan.added_seconds / (3 * self.trace.forward_seconds)


Steps = tuple[Stage, str]


class StepPlanner:
    """Plans local steps of a model, so that their predicted peak memory is within a budget.

    A plan follows from the step and the budget alone: times are nominal, and smaller batches take the actions of the
    largest one where these suffice. So it does not matter which client needs a plan first, and a resumed run has the
    plans of the uninterrupted one.

    Args:
        predictor: Predicts steps without a plan; its model rehearses those with one.
        largest_batch: Most images in a step of any client.
        bits: Keeps activations in this many bits, whatever the budget; ``None`` looks for the best actions.
    """

    def __init__(self, predictor: StepPredictor, largest_batch: int, bits: int | None = None) -> None:
        self.predictor = predictor
        self._bits = bits
        self._largest = largest_batch
        self._rests: dict[tuple[Stage, int], int] = {}
        self._traces: dict[tuple[Steps, int], StepTrace] = {}
        self._plans: dict[tuple[Stage, str, int], Planned] = {}
        self._floors: dict[tuple[Stage, str], int] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: (C, H, W) of images."""
        return self.predictor.model.encoder.spec.input_shape

    def unplanned(self, stage: Stage, batch_size: int) -> int:
        """Peak memory of a step without a plan."""
        return self.predictor(stage, batch_size).peak

    def least(self, stage: Stage, batch_size: int) -> int:
        """Peak memory of a step with the plan that saves most."""
        rehearsal = self.rehearse(stage)
        steps = self.predictor.form(stage), rehearsal.kind
        return min(self.unplanned(stage, batch_size), self._least(steps, batch_size, rehearsal))

    def rehearse(self, stage: Stage) -> Rehearsal:
        """The steps of a client that has a memory, in the planner's own model."""
        kind = f"{WITH_MEMORY}, {place_of(self.predictor.model.method)}"
        return Rehearsal(lambda: self._attached(stage), kind, self.shape)

    def _attached(self, stage: Stage) -> StepState:
        alignment, proximal = self.predictor.alignment, self.predictor.proximal
        method = self.predictor.attach(stage)
        method.loss_terms = []
        if alignment:
            assert isinstance(method, SSLMethod)
            alignment.start(method, alignment.remember(method))
            method.loss_terms.append(alignment)
        if proximal:
            method.loss_terms.append(ProximalTerm(method, proximal))
        return StepState(method, alignment)

    def plan(self, stage: Stage, batch_size: int, budget: float, rehearsal: Rehearsal | None = None) -> Planned | None:
        """The plan for a step; ``None`` if it needs none.

        Args:
            stage: The stage.
            batch_size: Images in the step.
            budget: Bytes that the step may take, everything counted that ``train.py plan`` counts.
            rehearsal: Of the method that will run it; by default the planner's own.

        Raises:
            InfeasibleBudgetError: No plan meets the budget; the message names stage, batch and what can be reached.
        """
        if self.unplanned(stage, batch_size) <= budget:
            return None
        rehearsal = rehearsal or self.rehearse(stage)
        steps, size = (self.predictor.form(stage), rehearsal.kind), int(budget)
        try:
            return self._planned(steps, batch_size, size, rehearsal)
        except InfeasibleBudgetError as error:
            least = self._least(steps, batch_size, rehearsal)
            raise InfeasibleBudgetError(
                f"memory budget {format_bytes(size)} is too small for stage {stage.index + 1} with {batch_size} images "
                f"a step: {format_bytes(least)} ({least} bytes) can be reached, "
                f"{format_bytes(self.unplanned(stage, batch_size))} are needed without a memory plan",
                least,
            ) from error

    def _planned(self, steps: Steps, batch_size: int, budget: int, rehearsal: Rehearsal) -> Planned:
        trace = self._trace(steps, batch_size, rehearsal)
        key = steps[0], trace.graph, budget
        if key not in self._plans:
            plan, rest = None, self._rest(steps[0], batch_size)
            if batch_size < self._largest:
                plan = self._transferred(steps, trace, budget, rehearsal)
            self._plans[key] = Planned(plan or self._search(trace, budget - rest), trace, rest)
        return self._plans[key]

    def _search(self, trace: StepTrace, budget: int) -> MemoryPlan:
        return compress_evenly(trace, self._bits) if self._bits else _search(trace, budget)

    def _transferred(self, steps: Steps, trace: StepTrace, budget: int, rehearsal: Rehearsal) -> MemoryPlan | None:
        """The plan of the largest batch, if there is one and it does."""
        try:
            model = self._planned(steps, self._largest, budget, rehearsal)
        except InfeasibleBudgetError:
            return None
        return transfer_plan(model.plan, model.trace, trace)

    def _least(self, steps: Steps, batch_size: int, rehearsal: Rehearsal) -> int:
        trace = self._trace(steps, batch_size, rehearsal)
        key = steps[0], trace.graph
        if key not in self._floors:
            try:
                self._floors[key] = self._search(trace, 1).predicted_peak + _codec(trace)
            except InfeasibleBudgetError as error:
                self._floors[key] = error.floor_bytes
        return self._floors[key] + self._rest(steps[0], batch_size)

    def _trace(self, steps: Steps, batch_size: int, rehearsal: Rehearsal) -> StepTrace:
        key = steps, batch_size
        if key not in self._traces:
            self._traces[key] = rehearsal.trace(batch_size)
        return self._traces[key]

    def _rest(self, form: Stage, batch_size: int) -> int:
        """What a step needs besides the activations that it keeps."""
        key = form, batch_size
        if key not in self._rests:
            predictor = self.predictor
            method, spec = predictor.attach(form), predictor.model.encoder.spec
            self._rests[key] = UnsavedStep(method, spec, predictor.alignment, predictor.proximal).peak(batch_size)
        return self._rests[key]


def _codec(trace: StepTrace) -> int:
    """Working memory of the codec."""
    return CODEC_BYTES * min(CHUNK, max(trace.values[value].numel for value in trace.saved))


def _search(trace: StepTrace, budget: int) -> MemoryPlan:
    """A plan for the activations; where it compresses, the codec's working memory is within the budget too.

    Raises:
        InfeasibleBudgetError: There is none; the floor includes the codec's working memory.
    """
    codec = _codec(trace)
    try:
        plan = plan_memory(trace, max(1, budget))
        if not any(action.bits for action in plan.actions.values()):
            return plan
        return plan_memory(trace, max(1, budget - codec))
    except InfeasibleBudgetError as error:
        raise InfeasibleBudgetError(str(error), error.floor_bytes + codec) from error
