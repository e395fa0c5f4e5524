"""The training loop that clients and the calibrating server share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedssl.client.local_step import take_step
from fedssl.client.step_costs import CostBook, StepKey
from fedssl.data.datasets import SampleSet
from fedssl.protocol.messages import Task
from ssl_methods import Inputs, Method


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite."""


@dataclass(frozen=True)
class LoopReport:
    """What a training loop did.

    Args:
        loss: Mean over the steps; NaN if there was no step.
        squared_loss: Mean of the squared losses of the steps, likewise.
        steps: Optimizer steps.
        macs: Multiply-accumulates of all steps.
        activation_bytes: Largest number of bytes kept for backward in one step.
    """

    loss: float
    squared_loss: float
    steps: int
    macs: int
    activation_bytes: int


class StepContext(Protocol):
    """Goes around forward and backward of a step and keeps it within a memory budget."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes held for backward at once."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: Any) -> bool | None: ...


class StepPlans(Protocol):
    """Memory plans for the steps of one client in one round."""

    @property
    def budget(self) -> int:
        """Bytes that the steps are kept within."""

    def __call__(self, batch_size: int) -> StepContext | None:
        """Return the plan for a batch size; ``None`` if the step fits as it is."""


class MemoryPlans(Protocol):
    """Memory plans of all clients.

    Attributes:
        changing: Whether a budget may be too small in one round and large enough in another.
    """

    @property
    def changing(self) -> bool: ...

    def begin(self, task: Task, method: Method) -> StepPlans:
        """Make the plans for one client in one round, whose steps a method runs."""


def train_epochs(
    method: Method,
    images: SampleSet,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    book: CostBook,
    key: StepKey,
    plans: StepPlans | None = None,
    lr_factor: float = 1.0,
) -> LoopReport:
    """Train a method on one client's images, with a fresh optimizer.

    Batches of fewer than two images give no step (nothing to contrast).

    Args:
        method: Trains its backbone and heads.
        images: The client's images.
        epochs: Passes over them.
        batch_size: Images a step; the last batch of an epoch may be smaller.
        generator: Shuffles the images.
        book: Where step costs are looked up and noted.
        key: Of the steps, but for what a batch and its plan add.
        plans: Keep the steps within a memory budget; ``None``: there is none.
        lr_factor: Factor of the optimizer's learning rate.

    Raises:
        NonFiniteLossError: The loss of an epoch is not finite.
        InfeasibleBudgetError: A step cannot be kept within the memory budget.
    """
    optimizer, times = method.configure_optimizers(), book.times
    scale_lr(optimizer, lr_factor)
    device = next(method.backbone.parameters()).device
    losses = torch.zeros(2, device=device)
    steps, macs, activation_bytes = 0, 0, 0

    def run(inputs: Inputs, planned: AbstractContextManager[object]) -> None:
        value = take_step(method, optimizer, inputs, times, planned).float()
        losses.add_(torch.stack([value, value.square()]))

    for _ in range(epochs):
        batches = shuffled_batches(images, batch_size, generator)
        while True:
            with times("augmentation"):
                batch = next(batches, None)
                if batch is None:
                    break
                samples, labels = batch
                # Numbers stay: their bank lies in main memory, and fetching them back would wait for the device.
                samples = samples if key.banked else samples.to(device, non_blocking=True)
                inputs = method.inputs(samples, labels.to(device, non_blocking=True))
            size = len(batch[0])
            planned = plans(size) if plans else None
            budget = plans.budget if plans and planned else None
            step = replace(key, batch_size=size, budget=budget)
            cost = book.step(step, method, partial(run, inputs, planned or nullcontext()))
            steps += 1
            macs += cost.macs
            activation_bytes = max(activation_bytes, planned.peak_bytes if planned else cost.activation_bytes)
        if not math.isfinite(losses[0].item()):
            raise NonFiniteLossError(
                f"loss {losses[0].item() / steps} after {steps} local steps; a lower model.optimizer.lr may help"
            )
    loss, squared_loss = (losses / steps).tolist() if steps else (math.nan, math.nan)
    return LoopReport(loss, squared_loss, steps, macs, activation_bytes)


def scale_lr(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rates of all parameter groups."""
    for group in optimizer.param_groups:
        # Not in place: a tensor may be the user's own, which all optimizers of the run share.
        group["lr"] = group["lr"] * factor


def shuffled_batches(images: SampleSet, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of batches in random order, without a batch of a single image.

    Images that are decoded from files are read one batch ahead.

    Yields:
        Images uint8 (B, C, H, W), or texts (B, T + 1), and labels (B,).
    """
    order = torch.randperm(len(images), generator=generator)
    indices = [chunk for chunk in order.split(batch_size) if len(chunk) > 1]
    if images.in_memory or not indices:
        yield from ((images.gather(chunk), images.labels[chunk]) for chunk in indices)
        return
    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = [reader.submit(images.gather, chunk) for chunk in indices[:1]]
        for position, chunk in enumerate(indices):
            batch = pending.pop().result()
            if position + 1 < len(indices):
                pending.append(reader.submit(images.gather, indices[position + 1]))
            yield batch, images.labels[chunk]
