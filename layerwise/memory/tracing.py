"""Runs a training step and writes down what it computes, what autograd keeps, and when backward needs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from layerwise.memory.codec_speed import measure_codec
from layerwise.memory.graph import StepTrace
from layerwise.memory.recorder import Recorder

Clock = Callable[[], float]


def synchronised_clock() -> float:
    """Seconds, read when all work given to an accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def trace_step(step: Callable[[], Tensor], model: nn.Module, clock: Clock = synchronised_clock) -> StepTrace:
    """Runs a step twice, forward and backward, and gives what plans are made from.

    Durations are the shorter ones of the two runs. The step runs without any saving of memory, so the trace needs
    the memory that plans save. Buffers, gradients and random state are afterwards as before.

    Args:
        step: Gives the scalar loss of a batch of the real size, the same computation at each call. What it
            computes before the first trained layer may be under ``no_grad``.
        model: Holds every parameter and buffer that the step uses; these do not count as activations.
        clock: Gives the time in seconds.

    Raises:
        ValueError: The loss is no scalar or keeps nothing for backward, or two runs differ.
    """
    first, second = _run(step, model, clock), _run(step, model, clock)
    if first.graph != second.graph:
        raise ValueError("the step is not the same at each call: two runs gave two graphs, so no plan can fit it")
    ops = tuple(
        replace(op, seconds=min(op.seconds, other.seconds)) for op, other in zip(first.ops, second.ops, strict=True)
    )
    if not second.saved:
        raise ValueError("the step keeps no activations for backward: there is nothing to plan")
    return replace(second, ops=ops, codec=measure_codec(_main_dtype(second), _device(model), clock))


def _run(step: Callable[[], Tensor], model: nn.Module, clock: Clock) -> StepTrace:
    recorder = Recorder(model, clock)
    with _unchanged(model), ExitStack() as stack:
        stack.enter_context(recorder.calls_of(model))
        stack.enter_context(recorder)
        stack.enter_context(saved_tensors_hooks(recorder.pack, recorder.unpack))
        loss = step()
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(f"the step must give a scalar loss with gradient, got shape {tuple(loss.shape)}")
        recorder.begin_backward()
        loss.backward()
    return recorder.trace()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restores buffers, gradients and the global random state."""
    device = _device(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            model.zero_grad(set_to_none=True)
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _main_dtype(trace: StepTrace) -> torch.dtype:
    """The data type of the largest saved float."""
    floats = [value for value in map(trace.values.__getitem__, trace.saved) if value.view.dtype.is_floating_point]
    largest = max(floats, key=lambda value: value.nbytes, default=None)
    return largest.view.dtype if largest else torch.float32
