"""The training loop that clients and the calibrating server share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedssl.datasets import ImageSet
from layerwise import StepCost, StepMeter
from ssl_methods import SSLMethod, Views


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite."""


@dataclass(frozen=True)
class LoopReport:
    """What a training loop did.

    Args:
        loss: Mean over the steps; NaN if there was no step.
        steps: Optimizer steps.
        macs: Multiply-accumulates of all steps.
        activation_bytes: Largest number of bytes kept for backward in one step.
    """

    loss: float
    steps: int
    macs: int
    activation_bytes: int


class CostBook:
    """Cost of a step by (kind of step, batch size), measured on the first one of each."""

    def __init__(self) -> None:
        self.costs: dict[tuple[str, int], StepCost] = {}

    def step(self, key: tuple[str, int], method: SSLMethod, run: Callable[[], None]) -> StepCost:
        """Runs one step and returns its cost, counting it if there is none of its key yet."""
        if key in self.costs:
            run()
        else:
            with StepMeter([*method.parameters(), *method.buffers()]) as meter:
                run()
            self.costs[key] = meter.cost()
        return self.costs[key]


def train_epochs(
    method: SSLMethod,
    images: ImageSet,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    book: CostBook,
    kind: str,
) -> LoopReport:
    """Trains a method on one client's images, with a fresh optimizer.

    Batches of fewer than two images give no step (nothing to contrast).

    Args:
        method: Trains its backbone and heads.
        images: The client's images.
        epochs: Passes over them.
        batch_size: Images a step; the last batch of an epoch may be smaller.
        generator: Shuffles the images.
        book: Where step costs are looked up and noted.
        kind: Steps of one kind and batch size cost the same.

    Raises:
        NonFiniteLossError: The loss of an epoch is not finite.
    """
    optimizer = method.configure_optimizers()
    device = next(method.backbone.parameters()).device
    total = torch.zeros((), device=device)
    steps, macs, activation_bytes = 0, 0, 0

    def run(views: Views) -> None:
        loss = method.loss_of(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
        total.add_(loss.detach())

    for _ in range(epochs):
        for batch in shuffled_batches(images, batch_size, generator):
            views = method.augment(batch.to(device, non_blocking=True), method.generator)
            cost = book.step((kind, len(batch)), method, partial(run, views))
            steps += 1
            macs += cost.macs
            activation_bytes = max(activation_bytes, cost.activation_bytes)
        if not math.isfinite(total.item()):
            raise NonFiniteLossError(f"loss {total.item() / steps} after {steps} local steps")
    return LoopReport(total.item() / steps if steps else math.nan, steps, macs, activation_bytes)


def shuffled_batches(images: ImageSet, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch of uint8 batches (B, C, H, W) in random order, without a batch of a single image.

    Images that are decoded from files are read one batch ahead.
    """
    order = torch.randperm(len(images), generator=generator)
    indices = [chunk for chunk in order.split(batch_size) if len(chunk) > 1]
    if images.in_memory or not indices:
        yield from map(images.gather, indices)
        return
    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = [reader.submit(images.gather, chunk) for chunk in indices[:1]]
        for following in [*indices[1:], None]:
            batch = pending.pop().result()
            if following is not None:
                pending.append(reader.submit(images.gather, following))
            yield batch
