"""What a local step costs at a batch size that was not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from fractions import Fraction
from math import lcm, prod

from fedssl.planning.fake_step import StepPrediction, StepTrace

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
