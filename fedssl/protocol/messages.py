"""Messages between server and client: tasks, results and failures, made of named parts of the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerwise import Stage

Tensors = dict[str, Tensor]
Parts = dict[str, Tensors]

STATE = "state."
"""Begin of the names of parts that steps move and no optimizer trains, see :mod:`fedssl.protocol.parts`."""


@dataclass(frozen=True)
class Task:
    """Task of one client for one round.

    Args:
        client_id: Client that trains.
        round: Communication round, from 0.
        stage: Layers that exist and layers that are trained.
        active: Tensors of the trained parts, by part name.
        frozen_ids: Content hash of every frozen part the client needs.
        frozen: Tensors of those frozen parts that the client does not hold yet.
        correction: Tensors that the client adds to the gradients of the trained parameters before each optimizer step;
            empty unless the aggregation rule sends some.
        lr_factor: Factor of the optimizer's learning rate in this round.
    """

    client_id: int
    round: int
    stage: Stage
    active: Parts
    frozen_ids: dict[str, str]
    frozen: Parts
    correction: Parts = field(default_factory=dict)
    lr_factor: float = 1.0


@dataclass(frozen=True)
class Result:
    """Result of a client's local training.

    Args:
        client_id: Client that trained.
        parts: Trained tensors by part name. They may share memory with the client's model: read them before
            the client trains again.
        num_images: Images the client trained on, its weight in the average.
        loss: Mean training loss over the local steps; ``None`` if the client keeps it to itself.
        squared_loss: Mean of the squared training loss over the local steps, likewise.
        macs: Multiply-accumulates of the local training.
        activation_bytes: Largest number of bytes kept for backward in one step.
        steps: Optimizer steps of the local training.
    """

    client_id: int
    parts: Parts
    num_images: int
    loss: float | None
    squared_loss: float | None
    macs: int
    activation_bytes: int
    steps: int


@dataclass(frozen=True)
class Failure:
    """Answer of a client that took part but has nothing usable to give.

    Args:
        client_id: Client that failed.
        reason: Cause, for people.
        skipped: It had too few images to train on; nothing went wrong.
        late: It had nothing ready at the deadline.
        macs: Multiply-accumulates it spent in vain.
        declined: Its memory is too small for the stage.
    """

    client_id: int
    reason: str
    skipped: bool = False
    late: bool = False
    macs: int = 0
    declined: bool = False


def flatten(parts: Parts) -> Tensors:
    """Return one flat mapping ``part/tensor name -> tensor``."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def unflatten(tensors: Tensors) -> Parts:
    """Invert :func:`flatten`."""
    parts: Parts = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts


def part_of(key: str) -> str:
    """Return the part that a tensor ``part/tensor name`` belongs to."""
    return key.partition("/")[0]


def num_bytes(parts: Parts) -> int:
    """Count the bytes of all tensors."""
    return sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())


def content_id(tensors: Tensors) -> str:
    """Hash the content of a part: equal tensors have equal ids on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
