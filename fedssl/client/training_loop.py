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

CPU = torch.device("cpu")
LARGEST_SHARE = 0.25
"""Part of a GPU's free memory that a client's images may take; the rest is for training."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite.

    Args:
        total: Sum of the losses.
        steps: Number of them.
    """

    def __init__(self, total: float, steps: int) -> None:
        super().__init__(f"loss {total / steps} after {steps} local steps; a lower model.optimizer.lr may help")


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
        # Numbers of a bank's rows stay: it lies in main memory, and fetching them back would wait for the device.
        batches = shuffled_batches(images, batch_size, generator, CPU if key.banked else device)
        while True:
            with times("augmentation"):
                batch = next(batches, None)
                if batch is None:
                    break
                inputs = method.inputs(*batch)
            size = len(batch[0])
            planned = plans(size) if plans else None
            budget = plans.budget if plans and planned else None
            step = replace(key, batch_size=size, budget=budget)
            cost = book.step(step, method, partial(run, inputs, planned or nullcontext()))
            steps += 1
            macs += cost.macs
            activation_bytes = max(activation_bytes, planned.peak_bytes if planned else cost.activation_bytes)
        if not math.isfinite(losses[0].item()):
            raise NonFiniteLossError(losses[0].item(), steps)
    loss, squared_loss = (losses / steps).tolist() if steps else (math.nan, math.nan)
    return LoopReport(loss, squared_loss, steps, macs, activation_bytes)


def scale_lr(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rates of all parameter groups."""
    for group in optimizer.param_groups:
        # Not in place: a tensor may be the user's own, which all optimizers of the run share.
        group["lr"] = group["lr"] * factor


def shuffled_batches(
    images: SampleSet, batch_size: int, generator: torch.Generator, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of batches in random order, without a batch of a single image.

    A GPU gets all of them at once if they are in memory and take little of its own. Other images are read, and put
    where a GPU can fetch them while it computes, one batch ahead.

    Yields:
        Images uint8 (B, C, H, W), or texts (B, T + 1), and labels (B,), on the device.
    """
    order = torch.randperm(len(images), generator=generator)
    indices = [chunk for chunk in order.split(batch_size) if len(chunk) > 1]
    if not indices:
        return
    if images.in_memory and device == CPU:
        yield from ((images.gather(chunk), images.labels[chunk]) for chunk in indices)
    elif images.in_memory and fits(images, device):
        whole = images.gather(torch.arange(len(images))), images.labels, order
        samples, labels, order = (each.to(device, non_blocking=True) for each in whole)
        # Cut on the device: a batch then costs no copy at all.
        yield from ((samples[chunk], labels[chunk]) for chunk in order.split(batch_size)[: len(indices)])
    else:
        yield from _read_ahead(images, indices, device)


def fits(images: SampleSet, device: torch.device) -> bool:
    """Tell if a client's samples take no more than ``LARGEST_SHARE`` of what a GPU has left."""
    needed = images.gather(torch.arange(1)).nbytes * len(images)
    return not torch.cuda.is_available() or needed <= LARGEST_SHARE * torch.cuda.mem_get_info(device)[0]


def _read_ahead(images: SampleSet, indices: list[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    def read(chunk: Tensor) -> tuple[Tensor, Tensor]:
        batch = images.gather(chunk), images.labels[chunk]
        # Pinned memory is what a GPU copies from without making the host wait.
        return (batch[0].pin_memory(), batch[1].pin_memory()) if device.type == "cuda" else batch

    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = reader.submit(read, indices[0])
        for chunk in [*indices[1:], None]:
            samples, labels = pending.result()
            if chunk is not None:
                pending = reader.submit(read, chunk)
            yield samples.to(device, non_blocking=True), labels.to(device, non_blocking=True)
