"""Updates of one round: what is checked of them, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedssl.protocol.messages import Failure, Parts, Result, Tensors, flatten, part_of, unflatten
from fedssl.server.aggregation import Update
from fedssl.server.aggregation.rule import difference_to
from fedssl.server.distance import ClientDistance

UPDATE_SAMPLE = 10_000
"""Entries of a client's update that a selector gets to see."""

MAX_UPDATE = 1000.0
"""Largest root mean square of a tensor's change, in units of one plus that of the global tensor.

Honest training stays far below: Adam moves no weight by more than its learning rate a step, so that even 1,000 steps
of 0.1 reach a tenth of it, and batch norm's variances of normalised images are some tens. It is there for values that
are finite and yet destroy any mean. The one keeps tensors trainable that begin at zero."""

LARGEST_LOSS = 1e9
"""Of a step; larger ones are no losses. Negative ones are: an objective may be a negative similarity."""

LARGEST_COUNTER = 2**53
"""Of local steps, and of an integer tensor such as batch norm's count of them, which must not overflow later."""


class ReceivedUpdates:
    """Updates of one round: checks them, hands the good ones to the aggregation rule and keeps running totals.

    Args:
        reference: Global tensors of the trained parts.
        add: Hands a good update on to the aggregation rule: its floating-point tensors. Of integer tensors (batch
            norm's step counters) the largest one counts.
        max_update: A client is dropped if a tensor of its update changed by more, as a root mean square, in units of
            one plus that of the global tensor.
        distance: Measures how far the good updates are apart; ``None`` does not.
        unpack: Makes a client's tensors of what it sent and of the global tensors; ``None``: it sent its tensors.
        lr_factor: Factor of the clients' learning rate.

    Attributes:
        given: Keys of the floating-point tensors that some client gave.
    """

    def __init__(
        self,
        reference: Tensors,
        add: Callable[[Update], None],
        max_update: float = MAX_UPDATE,
        *,
        distance: ClientDistance | None = None,
        unpack: Callable[[Parts, Parts], Parts] | None = None,
        lr_factor: float = 1.0,
    ) -> None:
        self.reference = reference
        self.distance = distance
        self.trained: list[int] = []
        self.failures: list[Failure] = []
        self.late: list[Failure] = []
        self.counters: Tensors = {}
        self.given: set[str] = set()
        self.macs = 0
        self.activation_bytes = 0
        self._hand_on = add
        self._max_update = max_update
        self._unpack = unpack
        self._lr_factor = lr_factor
        self._told = 0
        self._loss = 0.0

    def check(self, result: Result | Failure, parts: Iterable[str]) -> Result | Failure:
        """Return the result, unpacked if it was compressed, or the reason why it cannot be used.

        Args:
            result: Result of a client.
            parts: Parts that the client was to train.
        """
        if isinstance(result, Failure):
            return result
        asked = set(parts)
        expected = {key: own for key, own in self.reference.items() if part_of(key) in asked}
        if self._unpack:
            try:
                result = replace(result, parts=self._unpack(result.parts, unflatten(expected)))
            except ValueError as error:
                return Failure(result.client_id, f"its update cannot be unpacked: {error}")
        return find_fault(result, expected, self._max_update) or result

    def take(self, result: Result | Failure) -> None:
        """Add one client."""
        self.macs += result.macs
        if isinstance(result, Failure):
            (self.late if result.late else self.failures).append(result)
            return
        self._add(result)
        self.trained.append(result.client_id)
        if result.loss is not None:
            self._told += result.num_images
            self._loss += result.loss * result.num_images
        self.activation_bytes = max(self.activation_bytes, result.activation_bytes)

    def mean_loss(self) -> float:
        """Return the mean training loss weighted by images; NaN if no client told its own."""
        return self._loss / self._told if self._told else math.nan

    def reasons(self) -> str:
        """List the reasons why clients gave nothing usable; clients with the same reason are named together."""
        clients: dict[str, list[int]] = {}
        for failure in [*self.failures, *self.late]:
            clients.setdefault(failure.reason, []).append(failure.client_id)
        return "; ".join(f"{_clients(ids)}: {reason}" for reason, ids in clients.items())

    def _add(self, result: Result) -> None:
        floating: Tensors = {}
        counters: Tensors = {}
        for key, tensor in flatten(result.parts).items():
            (floating if self.reference[key].is_floating_point() else counters)[key] = tensor
        did = result.num_images, result.steps, math.nan if result.loss is None else result.loss
        self._hand_on(Update(result.client_id, floating, *did, self._lr_factor))
        self.given.update(floating)
        if self.distance:
            self.distance.add(floating)
        _keep_largest(self.counters, counters)


def find_fault(result: Result, reference: Tensors, max_update: float = MAX_UPDATE) -> Failure | None:
    """Say why a client's result cannot be used: wrong names, shapes or types, or values that no training gives.

    Selectors, means and the client's weight rely on what is checked here.
    """
    loss, squared_loss = result.loss or 0.0, result.squared_loss or 0.0
    if result.num_images < 1 or not abs(loss) <= LARGEST_LOSS or not 0 <= squared_loss <= LARGEST_LOSS**2:
        trained = f"{result.num_images} images with a loss of {loss:g}"
        return Failure(result.client_id, f"{trained}, squared {squared_loss:g}, cannot be")
    if not 1 <= result.steps <= LARGEST_COUNTER:
        return Failure(result.client_id, f"{result.steps} local steps cannot be")
    tensors = flatten(result.parts)
    if tensors.keys() != reference.keys():
        return Failure(result.client_id, "its update has other tensors than its task")
    for key, tensor in tensors.items():
        if tensor.shape != reference[key].shape:
            return Failure(result.client_id, f"{key} has shape {tuple(tensor.shape)}")
        if tensor.dtype != reference[key].dtype:
            return Failure(result.client_id, f"{key} has type {tensor.dtype}")
    measured = [_measure(tensor, reference[key]) for key, tensor in tensors.items()]
    # Fetched at once: each reading of its own would have the host wait for a GPU.
    figures = torch.stack(measured).cpu().tolist() if measured else []
    for key, (sound, change, before) in zip(tensors, figures, strict=True):
        limit = max_update * (1 + before)
        if not sound and reference[key].is_floating_point():
            return Failure(result.client_id, f"{key} is not finite")
        if not sound:
            return Failure(result.client_id, f"{key} counts more than {LARGEST_COUNTER} steps")
        if not change <= limit:
            how = f"changed by {change:.3g} (root mean square), more than {limit:.3g}"
            return Failure(result.client_id, f"{key} {how}")
    return None


def _measure(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return three numbers (3,): 1 if all values are possible; the root mean square of change and of the reference."""
    tensor = tensor.to(reference.device)
    if not tensor.is_floating_point():
        sound = (tensor <= LARGEST_COUNTER).all().double()
        return torch.stack([sound, torch.zeros_like(sound), torch.zeros_like(sound)])
    change = root_mean_square(difference_to(reference, tensor))
    return torch.stack([torch.isfinite(tensor).all().double(), change, root_mean_square(reference)])


def check_max_update(max_update: float) -> None:
    """Refuse bounds that drop every client.

    Raises:
        ValueError: It is one.
    """
    if not max_update > 0:
        raise ValueError(f"max_update must be above 0, got {max_update}")


def root_mean_square(tensor: Tensor) -> Tensor:
    """Compute the root mean square of all entries as a float64 scalar; 0 of none."""
    return torch.linalg.vector_norm(tensor.float()).double() / max(1, tensor.numel()) ** 0.5


def _clients(ids: list[int]) -> str:
    named = ", ".join(map(str, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return f"client{'s' if len(ids) > 1 else ''} {named}"


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
