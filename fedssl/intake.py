"""Takes in the results of one round, one client at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from fedssl.aggregation import Aggregation
from fedssl.messages import Failure, Result, Tensors, flatten, num_bytes

UPDATE_SAMPLE = 10_000
"""Entries of a client's update that a selector gets to see."""


class Intake:
    """Checks results, hands the good ones to the aggregation rule and keeps running totals.

    Args:
        reference: The global tensors of the trained parts.
        aggregation: The rule; it gets the floating-point tensors. Of integer tensors (batch norm's step
            counters) the largest one counts.
    """

    def __init__(self, reference: Tensors, aggregation: Aggregation) -> None:
        self.trained: list[int] = []
        self.failures: list[Failure] = []
        self.late: list[Failure] = []
        self.counters: Tensors = {}
        self.given: set[str] = set()
        self.up_bytes = 0
        self.macs = 0
        self.activation_bytes = 0
        self._reference = reference
        self._floating = {key: tensor for key, tensor in reference.items() if tensor.is_floating_point()}
        self._aggregation = aggregation
        self._images = 0
        self._loss = 0.0
        aggregation.begin(self._floating)

    def check(self, result: Result | Failure, parts: Iterable[str]) -> Result | Failure:
        """The result, or why it cannot be used.

        Args:
            result: From a client.
            parts: The parts that the client was to train.
        """
        if isinstance(result, Failure):
            return result
        asked = set(parts)
        expected = {key: own for key, own in self._reference.items() if key.partition("/")[0] in asked}
        return find_fault(result, expected) or result

    def take(self, result: Result | Failure) -> None:
        """Adds one client."""
        if isinstance(result, Failure):
            (self.late if result.late else self.failures).append(result)
            self.macs += result.macs
            return
        tensors = flatten(result.parts)
        floating = {k: t for k, t in tensors.items() if k in self._floating}
        self._aggregation.add(floating, result.num_images)
        self.given.update(floating)
        _keep_largest(self.counters, {k: t for k, t in tensors.items() if k not in self._floating})
        self._count(result)

    def mean_loss(self) -> float:
        """Mean training loss weighted by images; NaN if no client gave a result."""
        return self._loss / self._images if self._images else math.nan

    def reasons(self) -> str:
        """Why clients gave nothing usable."""
        return "; ".join(f"client {failure.client_id}: {failure.reason}" for failure in [*self.failures, *self.late])

    def _count(self, result: Result) -> None:
        self.trained.append(result.client_id)
        self._images += result.num_images
        self._loss += result.loss * result.num_images
        self.up_bytes += num_bytes(result.parts)
        self.macs += result.macs
        self.activation_bytes = max(self.activation_bytes, result.activation_bytes)


def find_fault(result: Result, reference: Tensors) -> Failure | None:
    """Why a client's result cannot be used: wrong names, shapes or types, or values that are not finite."""
    tensors = flatten(result.parts)
    if tensors.keys() != reference.keys():
        return Failure(result.client_id, "its update has other tensors than its task")
    for key, tensor in tensors.items():
        if tensor.shape != reference[key].shape:
            return Failure(result.client_id, f"{key} has shape {tuple(tensor.shape)}")
        if tensor.dtype != reference[key].dtype:
            return Failure(result.client_id, f"{key} has type {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            return Failure(result.client_id, f"{key} is not finite")
    return None


def _keep_largest(counters: Tensors, tensors: Tensors) -> None:
    """Integer tensors (batch norm's step counters) are not averaged: the largest one counts."""
    for key, tensor in tensors.items():
        counters[key] = torch.maximum(counters[key], tensor) if key in counters else tensor.clone()


def sample_update(result: Result, reference: Tensors) -> np.ndarray:
    """Evenly spaced entries of what a client changed, about ``UPDATE_SAMPLE`` of them; 0 in layers it did not give."""
    tensors, changes = flatten(result.parts), []
    floating = {key: tensor for key, tensor in reference.items() if tensor.is_floating_point()}
    step = max(1, sum(tensor.numel() for tensor in floating.values()) // UPDATE_SAMPLE)
    for key, tensor in floating.items():
        before = tensor.flatten()[::step].float()
        after = tensors[key].flatten()[::step].to(before.device).float() if key in tensors else before
        changes.append(after - before)
    return torch.cat(changes).cpu().numpy()
