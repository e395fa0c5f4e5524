"""Predicted cost of a local step and of a round, for any stage and batch size, from few steps run without data."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, fields, replace
from fractions import Fraction
from functools import cache
from math import lcm, prod

import numpy as np

from fedssl.client.bank import ActivationBank
from fedssl.client.local_step import LocalStep
from fedssl.costs.fake_step import FakeStep, StepPrediction, StepTrace
from fedssl.protocol.messages import num_bytes
from fedssl.protocol.parts import PartitionedModel
from layerwise import Stage

DEGREE = 2
"""Degree of every cost as a polynomial in the batch size: losses compare each image with each other one."""


class StepPredictor:
    """Predictor of the local steps of a model with a method, at any stage and batch size.

    Steps are run on fake tensors (:class:`fedssl.costs.fake_step.FakeStep`): the same operators, shapes and
    lifetimes without memory or arithmetic. Hence multiply-accumulates and kept activations are those that a real step
    on a CPU has.

    Args:
        model: Model whose method is attached to the stages asked for; its weights are not changed.
        step: Losses of a client's step beyond the method's own; its alignment is attached to the model.
        bank: Bank of the frozen prefix's outputs, from which steps train; ``None`` if they run the prefix.
    """

    def __init__(
        self,
        model: PartitionedModel,
        step: LocalStep = LocalStep(),  # noqa: B008 (frozen)
        bank: ActivationBank | None = None,
    ) -> None:
        self.model = model
        self.step = step
        self.bank = bank
        self._alike = _grows_evenly(model)
        self.fake_step = cache(self._make_step)
        self._cost = cache(self._run_or_infer)
        self._traces: dict[tuple[Stage, int], dict[int, StepTrace]] = defaultdict(dict)

    def canonical_stage(self, stage: Stage) -> Stage:
        """Return the form that stages with the same steps share: without index and rounds, like blocks renumbered."""
        if not self._alike:
            return replace(stage, index=0, rounds=1)
        present = tuple(range(len(stage.present)))
        return Stage(0, present, present[len(stage.frozen) :], stage.trains_stem, 1)

    def __call__(self, stage: Stage, batch_size: int) -> StepPrediction:
        """Return the cost of a step at a stage.

        Where all blocks are alike, as in a ViT, every cost grows by the same amount with each frozen and each trained
        block, so that a few shallow stages tell all others. Only the peak of a very small model may be off, by some
        percent, where it falls into another phase of the step with growing depth.
        """
        frozen, trained = len(stage.frozen), len(stage.trained)
        if not self._alike:
            return self._cost(replace(stage, index=0, rounds=1), batch_size)
        # A frozen stem has a frozen block behind it in every stage: the shallowest such stage has one.
        least = 0 if stage.trains_stem else 1

        def shallow(frozen: int, trained: int) -> StepPrediction:
            present = tuple(range(frozen + trained))
            return self._cost(Stage(0, present, present[frozen:], stage.trains_stem, 1), batch_size)

        if frozen + trained <= 2:
            return shallow(frozen, trained)
        base = np.array(astuple(shallow(least, 1)))
        costs = base.copy()
        if frozen > least:
            costs += (frozen - least) * (astuple(shallow(least + 1, 1)) - base)
        if trained > 1:
            costs += (trained - 1) * (astuple(shallow(least, 2)) - base)
        return StepPrediction(*costs.tolist())

    def run(self, stage: Stage, batch_size: int) -> StepPrediction:
        """Run the step itself, without inference."""
        return self._make_step(stage)(batch_size).step

    def bank_bytes(self, stage: Stage, num_images: int) -> int:
        """Return the memory of the bank of a client with so many images; 0 without a bank, or with one in files."""
        if self.bank is None or self.bank.path:
            return 0
        return self.bank.size(num_images, self._hidden_shapes(stage))

    def check_bank(self, stages: Iterable[Stage], num_images: int) -> None:
        """Refuse a bank that exceeds its budget at some stage, for a client with so many images.

        Raises:
            InfeasibleBudgetError: The bank exceeds its budget.
        """
        assert self.bank is not None
        for stage in stages:
            self.bank.check(stage, num_images, self._hidden_shapes(stage))

    def _hidden_shapes(self, stage: Stage) -> list[tuple[int, ...]]:
        """Return the shapes stored of one image; nothing is stored where nothing is frozen."""
        if not stage.frozen_parts():
            return []
        # Blocks that are alike give outputs of one shape, which is the stem's.
        shallow = Stage(0, (0,), (0,), False, 1) if self._alike else replace(stage, index=0, rounds=1)
        return self.fake_step(shallow).hidden_shapes()

    def _run_or_infer(self, stage: Stage, batch_size: int) -> StepPrediction:
        """Run the stage at the first batch sizes asked for and infer the cost at all further ones."""
        # Only steps with equally many micro-batches have the same operations.
        traces = self._traces[stage, math.ceil(batch_size / (self.model.micro_batch or batch_size))]
        inferred = infer_step(traces, batch_size) if len(traces) > DEGREE else None
        if inferred:
            return inferred
        trace = self.fake_step(stage)(batch_size)
        if len(traces) <= DEGREE:
            traces[batch_size] = trace
        return trace.step

    def _make_step(self, stage: Stage) -> FakeStep:
        from_bank = self.bank is not None and bool(stage.frozen_parts())
        return FakeStep(self.step.attach(self.model, stage), self.model.encoder.spec, self.step, from_bank)


def _grows_evenly(model: PartitionedModel) -> bool:
    """Return True if all blocks are alike, and no part comes or goes with the depth."""
    parts = model.encoder.parts()
    lasting = ("stem", "tail", *(name for name in parts if name.startswith("block.")))
    temporary = any(part.state_dict() for name, part in parts.items() if name not in lasting)
    # Equal printouts mean equal layers and sizes; a cost does not depend on the weights.
    return not temporary and len({repr(block) for block in model.encoder.blocks}) == 1


def infer_step(traces: Mapping[int, StepTrace], batch_size: int) -> StepPrediction | None:
    """Infer the cost of a step at a batch size that was not run, from as many as determine it.

    Steps at all batch sizes run the same operations, and the bytes alive after each of them are a polynomial of degree
    2 in the batch size. Hence the peak is exact, though another operation may have it.

    Args:
        traces: Steps by batch size; three of them.
        batch_size: Batch size asked for.

    Returns:
        Cost, or ``None`` if the steps differ in their operations, so that nothing can be inferred.
    """
    assert len(traces) == DEGREE + 1
    if len({len(trace.levels) for trace in traces.values()}) > 1:
        return None
    # As fractions: the test for whole numbers below would mean nothing after rounding.
    weights = lagrange_weights(list(traces), batch_size)
    common = lcm(*(weight.denominator for weight in weights))
    first, second, third = (int(weight * common) for weight in weights)
    # The peak is no polynomial, as another operation may have it; it is the largest of the levels, which are.
    rows = [[*astuple(replace(trace.step, peak=0)), *trace.levels] for trace in traces.values()]
    scaled = [first * a + second * b + third * c for a, b, c in zip(*rows, strict=True)]
    # Bytes and operations are whole; a remainder shows that some cost is no polynomial after all.
    if any(value % common for value in scaled):
        return None
    number = len(fields(StepPrediction))
    costs = [value // common for value in scaled]
    return replace(StepPrediction(*costs[:number]), peak=max(costs[number:]))


def lagrange_weights(points: list[int], at: int) -> list[Fraction]:
    """Return w_i with p(at) = sum w_i p(points_i) for every polynomial p of degree below ``len(points)``."""
    return [prod((Fraction(at - b, a - b) for b in points if b != a), start=Fraction(1)) for a in points]


@dataclass(frozen=True)
class Need:
    """Needs of one client in one round.

    Args:
        peak_memory_bytes: Peak of a local step at its largest batch; with a memory budget what a device must have.
        macs: Multiply-accumulates of local training, without filling a bank.
        active_bytes: Bytes of the trained layers and heads, which travel both ways.
    """

    peak_memory_bytes: int
    macs: int
    active_bytes: int


class Forecast:
    """Forecast of the needs of a client with some number of images at a stage.

    Args:
        predictor: Predictor of local steps; its model is attached to the stages asked for and keeps its weights.
        epochs: Local epochs a round.
        batch_size: Images a step.
        memory: Bytes that a device must have for a stage and batch size; ``None``: the step's predicted peak.
    """

    def __init__(
        self, predictor: StepPredictor, epochs: int, batch_size: int, memory: Callable[[Stage, int], int] | None = None
    ) -> None:
        self.predictor = predictor
        self._epochs = epochs
        self._batch_size = batch_size
        self._memory = memory or (lambda stage, size: predictor(stage, size).peak)
        self._needs: dict[tuple[Stage, int], Need] = {}

    def __call__(self, stage: Stage, num_images: int) -> Need:
        """Return the need; it is computed once for each form of a stage and number of images."""
        form = self.predictor.canonical_stage(stage)
        if (form, num_images) not in self._needs:
            # Of this stage's own parts: a block of another stage with the same form has as many bytes.
            self._needs[form, num_images] = self._compute(stage, num_images)
        return self._needs[form, num_images]

    def filling_macs(self, stage: Stage, num_images: int) -> int:
        """Return the multiply-accumulates of filling a client's bank once."""
        bank = self.predictor.bank
        if bank is None:
            return 0
        step = self.predictor(stage, self._batch_size)
        return bank.pairs * num_images * step.filling_macs // self._batch_size

    def steps(self, num_images: int) -> int:
        """Return the optimizer steps of a round."""
        return self._epochs * batches_of_epoch(num_images, self._batch_size).total()

    def _compute(self, stage: Stage, num_images: int) -> Need:
        steps, model = batches_of_epoch(num_images, self._batch_size), self.predictor.model
        macs = self._epochs * sum(count * self.predictor(stage, size).macs for size, count in steps.items())
        active = num_bytes(model.read(model.trained_names(stage)))
        # A client without steps is priced at the smallest batch that can be contrasted.
        peak = self._memory(stage, max(steps, default=2)) + self.predictor.bank_bytes(stage, num_images)
        return Need(peak, macs, active)


@cache  # asked for every client of every dry round; callers only read it
def batches_of_epoch(images: int, batch_size: int) -> Counter[int]:
    """Count the local steps of one epoch by batch size; a batch of one image gives no step."""
    full, rest = divmod(images, batch_size)
    return Counter({batch_size: full} if full else {}) + Counter({rest: 1} if rest > 1 else {})


def step_sizes(images: Iterable[int], batch_size: int) -> list[int]:
    """Return the images in the local steps of clients, each number once, the largest first."""
    return sorted({size for number in images for size in batches_of_epoch(number, batch_size)}, reverse=True)


def largest_batch(images: Iterable[int], batch_size: int) -> int:
    """Return the images of the largest local step of any client."""
    return max(step_sizes(images, batch_size), default=2)
