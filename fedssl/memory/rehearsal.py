"""A local step as it is traced for a memory plan, and as it is run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fedssl.alignment import Alignment, ProximalTerm
from layerwise.memory import StepTrace, trace_step, with_nominal_times
from ssl_methods import Method

WITH_MEMORY = "with memory"
"""Kind of the steps that predictions are for."""


class StepState(nn.Module):
    """Every parameter and buffer that a local step reads: the method's and those of its further loss terms.

    Args:
        method: Attached to a stage, with its loss terms.
        alignment: The representation alignment among them, if any.
    """

    def __init__(self, method: Method, alignment: Alignment | None) -> None:
        super().__init__()
        self.method = method
        received = [each for term in method.loss_terms if isinstance(term, ProximalTerm) for each in term.received]
        for number, tensor in enumerate([*(alignment.copies() if alignment else []), *received]):
            self.register_buffer(f"copy{number}", tensor)


class Rehearsal:
    """Traces the steps of one method at one stage.

    Args:
        prepare: Attaches the method to its stage and gives the state of its steps.
        kind: Tells apart steps of a stage and batch size: with and without a memory, by device and precision.
        shape: Of one input: (C, H, W) of images.
    """

    def __init__(self, prepare: Callable[[], StepState], kind: str, shape: tuple[int, ...]) -> None:
        self._prepare = prepare
        self.kind = kind
        self._shape = shape

    def trace(self, batch_size: int) -> StepTrace:
        """The step on empty inputs, with nominal times, so that equal runs have equal plans.

        Raises:
            ValueError: Two steps differ in their operations, so that nothing can be planned.
        """
        state = self._prepare()
        device = next(state.method.backbone.parameters()).device
        examples = state.method.example_inputs((batch_size, *self._shape))
        inputs = tuple(torch.zeros_like(each, device=device) for each in examples)
        return with_nominal_times(trace_step(partial(state.method.loss_of, inputs), state, lambda: 0.0))


def place_of(method: Method) -> str:
    """Device and precision of a method's steps, on which their operations depend."""
    kind = next(method.backbone.parameters()).device.type
    return f"{kind} {torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32}"
