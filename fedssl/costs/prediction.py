"""What a local step of any stage and batch size will cost, from few steps that are run without data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, replace
from fractions import Fraction
from functools import cache
from math import lcm, prod

from fedssl.client.bank import ActivationBank
from fedssl.client.local_step import LocalStep
from fedssl.costs.fake_step import FakeStep, StepPrediction, StepTrace
from fedssl.protocol.parts import PartitionedModel
from layerwise import Stage


class StepPredictor:
    """Predicts local steps of a model with a method, at any stage and batch size.

    Steps are run on fake tensors (:class:`fedssl.costs.fake_step.FakeStep`): the same operators, shapes and
    lifetimes without memory or arithmetic. Hence multiply-accumulates and kept activations are those that a real step
    on a CPU has.

    Args:
        model: Its method is attached to the stages asked for; its weights are not changed.
        step: Losses of a client's step beyond the method's own; its alignment is attached to the model.
        bank: Stores outputs of the frozen prefix, from which steps train; ``None``: they run it.
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
        """What stages with the same steps have in common: index and rounds are dropped, like blocks are renumbered."""
        if not self._alike:
            return replace(stage, index=0, rounds=1)
        present = tuple(range(len(stage.present)))
        return Stage(0, present, present[len(stage.frozen) :], stage.trains_stem, 1)

    def __call__(self, stage: Stage, batch_size: int) -> StepPrediction:
        """The cost of a step at a stage.

        Where all blocks are alike, as in a ViT, every cost grows by the same amount with each frozen and each trained
        block, so that a few shallow stages tell all others. Only the peak of a very small model may be off, by some
        percent, where it falls into another phase of the step with growing depth.
        """
        frozen, trained = len(stage.frozen), len(stage.trained)
        if not self._alike:
            return self._cost(replace(stage, index=0, rounds=1), batch_size)
        least = 0 if stage.trains_stem else 1

        def shallow(frozen: int, trained: int) -> StepPrediction:
            present = tuple(range(frozen + trained))
            return self._cost(Stage(0, present, present[frozen:], stage.trains_stem, 1), batch_size)

        if frozen + trained <= 2:
            return shallow(frozen, trained)
        base = shallow(least, 1)
        per_frozen = _difference(shallow(least + 1, 1), base) if frozen > least else {}
        per_trained = _difference(shallow(least, 2), base) if trained > 1 else {}
        return _extend(base, (per_frozen, frozen - least), (per_trained, trained - 1))

    def run(self, stage: Stage, batch_size: int) -> StepPrediction:
        """Runs the step itself, nothing is inferred."""
        return self._make_step(stage)(batch_size).step

    def bank_bytes(self, stage: Stage, num_images: int) -> int:
        """Memory of the bank of a client with so many images; 0 if there is none, or it is in files."""
        if self.bank is None or self.bank.path:
            return 0
        return self.bank.size(num_images, self._hidden_shapes(stage))

    def check_bank(self, stages: Iterable[Stage], num_images: int) -> None:
        """Whether a client with so many images has a bank within its budget at every stage.

        Raises:
            InfeasibleBudgetError: It has not.
        """
        assert self.bank is not None
        for stage in stages:
            self.bank.check(stage, num_images, self._hidden_shapes(stage))

    def _hidden_shapes(self, stage: Stage) -> list[tuple[int, ...]]:
        """Of one image; nothing is stored where nothing is frozen."""
        if not stage.frozen_parts():
            return []
        shallow = Stage(0, (0,), (0,), False, 1) if self._alike else replace(stage, index=0, rounds=1)
        return self.fake_step(shallow).hidden_shapes()

    def _run_or_infer(self, stage: Stage, batch_size: int) -> StepPrediction:
        """Runs the stage at the first batch sizes asked for and infers the cost at all further ones.

        Only steps with equally many micro-batches have the same operations.
        """
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
    """Whether all blocks are alike, and no part comes or goes with the depth."""
    parts = model.encoder.parts()
    lasting = ("stem", "tail", *(name for name in parts if name.startswith("block.")))
    temporary = any(part.state_dict() for name, part in parts.items() if name not in lasting)
    return not temporary and len({repr(block) for block in model.encoder.blocks}) == 1


def _difference(larger: StepPrediction, smaller: StepPrediction) -> dict[str, int]:
    return {key: value - getattr(smaller, key) for key, value in asdict(larger).items()}


def _extend(base: StepPrediction, *growths: tuple[dict[str, int], int]) -> StepPrediction:
    """Adds each growth as often as it is counted."""
    costs = asdict(base)
    for growth, times in growths:
        costs = {key: value + times * growth.get(key, 0) for key, value in costs.items()}
    return StepPrediction(**costs)


DEGREE = 2
"""Of every cost as a polynomial in the batch size: losses compare each image with each other one."""


def infer_step(traces: Mapping[int, StepTrace], batch_size: int) -> StepPrediction | None:
    """The cost of a step at a batch size that was not run, from as many as determine it.

    Steps at all batch sizes run the same operations, and the bytes alive after each of them are a polynomial of degree
    2 in the batch size. Hence the peak is exact, though another operation may have it.

    Args:
        traces: Steps by batch size; three of them.
        batch_size: The one asked for.

    Returns:
        ``None`` if the steps differ in their operations, so that nothing can be inferred.
    """
    assert len(traces) == DEGREE + 1
    if len({len(trace.levels) for trace in traces.values()}) > 1:
        return None
    weights = lagrange_weights(list(traces), batch_size)
    common = lcm(*(weight.denominator for weight in weights))
    first, second, third = (int(weight * common) for weight in weights)
    rows = [[*astuple(trace.step), *trace.levels] for trace in traces.values()]
    scaled = [first * a + second * b + third * c for a, b, c in zip(*rows, strict=True)]
    parameters, gradients, state, copies, activations, _, macs, filling, *levels = scaled
    exact = [parameters, gradients, state, copies, activations, macs, filling, *levels]
    if any(value % common for value in exact):
        return None
    costs = [value // common for value in (*exact[:5], max(levels), macs, filling)]
    return StepPrediction(*costs)


def lagrange_weights(points: list[int], at: int) -> list[Fraction]:
    """Weights w_i with p(at) = sum w_i p(points_i) for every polynomial p of degree below ``len(points)``."""
    return [prod((Fraction(at - b, a - b) for b in points if b != a), start=Fraction(1)) for a in points]
