"""Compression of what clients send: the change of their weights in fewer bytes, with error feedback."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedssl.protocol.messages import Parts, Tensors

PACKED = "packed."
"""Begin of the names of tensors that stand for the compressed weights of a part."""


class Compression(ABC):
    """Lossy code of a client's change of a part's weights, all of them in one vector.

    The server adds the decoded change to what it sent. The client adds what the code lost to its change in the next
    round in which it trains the same layers (error feedback; Seide et al., "1-bit stochastic gradient descent",
    Interspeech 2014; Karimireddy et al., arXiv 1901.09847), so that errors do not add up. Statistics such as batch
    norm's travel as they are: they are small, and a mean that lags behind would disturb more than its bytes save.
    """

    @abstractmethod
    def pack(self, change: Tensor) -> Tensors:
        """Encode a change, float32 (N,), as named tensors."""

    @abstractmethod
    def unpack(self, packed: Tensors, size: int) -> Tensor:
        """Decode a change, float32 (N,) with N = ``size``.

        Args:
            packed: What :meth:`pack` gave, or a client that cannot be trusted.
            size: Number of weights.

        Raises:
            ValueError: These tensors are no code of so many weights.
        """


@dataclass(frozen=True)
class BFloat16(Compression):
    """Round to bfloat16: half of the bytes, a relative error of at most 1/256."""

    def pack(self, change: Tensor) -> Tensors:
        """Encode as the 16 bits of each number, in integers since not every transport knows the type."""
        return {"values": change.bfloat16().view(torch.int16)}

    def unpack(self, packed: Tensors, size: int) -> Tensor:
        """Decode the numbers."""
        values = _checked(packed, values=(torch.int16, size))["values"]
        return values.view(torch.bfloat16).float()


@dataclass(frozen=True)
class EightBit(Compression):
    """Round to 255 equal steps between plus and minus the largest change of each block: about a quarter of the bytes.

    Args:
        block: Neighbouring weights that share a scale, 4 bytes each block.

    Raises:
        ValueError: A block is empty.
    """

    block: int = 256

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be 1 or more weights, got {self.block}")

    def pack(self, change: Tensor) -> Tensors:
        """Encode as a scale a block, and an integer from -127 to 127 a weight."""
        blocks = self._blocks(change)
        scales = blocks.abs().amax(dim=1) / 127
        steps = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        return {"values": steps.round().to(torch.int8).flatten()[: len(change)], "scales": scales}

    def unpack(self, packed: Tensors, size: int) -> Tensor:
        """Decode by the scale of each block."""
        number = math.ceil(size / self.block)
        found = _checked(packed, values=(torch.int8, size), scales=(torch.float32, number))
        return (self._blocks(found["values"].float()) * found["scales"][:, None]).flatten()[:size]

    def _blocks(self, vector: Tensor) -> Tensor:
        return F.pad(vector, (0, -len(vector) % self.block)).view(-1, self.block)


@dataclass(frozen=True)
class TopK(Compression):
    """Send the largest changes only, each with its place: 8 bytes for each that is sent.

    Sparsification with memory (Stich et al., "Sparsified SGD with memory", NeurIPS 2018), part by part, so that every
    layer moves.

    Args:
        fraction: Share of a part's weights that is sent, rounded up.

    Raises:
        ValueError: The fraction is not above 0, or above a half, where the places make it no smaller.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise ValueError(
                f"fraction must be above 0 and at most 0.5, got {self.fraction}: each has a place to send too"
            )

    def pack(self, change: Tensor) -> Tensors:
        """Encode as the places of the largest changes, rising, and their values."""
        places = change.abs().topk(self._number(len(change))).indices.sort().values
        return {"places": places.to(torch.int32), "values": change[places]}

    def unpack(self, packed: Tensors, size: int) -> Tensor:
        """Decode with zeros elsewhere."""
        number = self._number(size)
        found = _checked(packed, places=(torch.int32, number), values=(torch.float32, number))
        places = found["places"].long()
        if not bool(((places >= 0) & (places < size)).all()):
            raise ValueError(f"places are not all from 0 to {size - 1}")
        return torch.zeros(size, device=places.device).index_put((places,), found["values"])

    def _number(self, size: int) -> int:
        return math.ceil(self.fraction * size)


def pack_update(
    rule: Compression, trained: Parts, received: Parts, weights: Collection[str], lost: Mapping[str, Tensor]
) -> tuple[Parts, Tensors]:
    """Compress the change that training made to the weights of each part.

    Args:
        rule: Code of the change.
        trained: Tensors after training, by part.
        received: The same before.
        weights: Keys ``part/name`` of the tensors that are compressed; all others are sent as they are.
        lost: What earlier rounds lost, by part; a part without it lost nothing.

    Returns:
        Tensors to send, and what is lost now, by part.
    """
    sent, left = {}, {}
    for part, tensors in trained.items():
        names = _names(part, tensors, weights)
        sent[part] = {name: tensor for name, tensor in tensors.items() if name not in names}
        if names:
            after = _vector(tensors, names)
            change = after - _vector(received[part], names).to(after.device)
            change += lost[part].to(after.device) if part in lost else 0
            packed = rule.pack(change)
            left[part] = change - rule.unpack(packed, len(change))
            sent[part] |= {PACKED + name: tensor for name, tensor in packed.items()}
    return sent, left


def unpack_update(rule: Compression, sent: Parts, received: Parts, weights: Collection[str]) -> Parts:
    """Decompress what :func:`pack_update` gave, or a client that cannot be trusted.

    Args:
        rule: Code of the change.
        sent: Tensors that the client sent, by part.
        received: What it was sent before.
        weights: Keys ``part/name`` of the tensors that are compressed.

    Raises:
        ValueError: A part is no code of a change; the message says which.
    """
    trained: Parts = {}
    for part, tensors in sent.items():
        own = received.get(part, {})
        names = _names(part, own, weights)
        packed = {name.removeprefix(PACKED): each for name, each in tensors.items() if name.startswith(PACKED)}
        trained[part] = {name: each for name, each in tensors.items() if not name.startswith(PACKED)}
        if names:
            before = _vector(own, names)
            try:
                after = before + rule.unpack(packed, len(before)).to(before.device)
            except ValueError as error:
                raise ValueError(f"part {part}: {error}") from error
            pieces = after.split([own[name].numel() for name in names])
            trained[part] |= {n: p.view_as(own[n]).to(own[n].dtype) for n, p in zip(names, pieces, strict=True)}
    return trained


def _names(part: str, tensors: Tensors, weights: Collection[str]) -> list[str]:
    return [name for name in tensors if f"{part}/{name}" in weights]


def _vector(tensors: Tensors, names: list[str]) -> Tensor:
    return torch.cat([tensors[name].detach().float().flatten() for name in names])


def _checked(packed: Tensors, **wanted: tuple[torch.dtype, int]) -> Tensors:
    """Return the tensors if they have these names, types and lengths."""
    found: dict[str, tuple[Any, ...]] = {name: (tensor.dtype, *tensor.shape) for name, tensor in packed.items()}
    if found != wanted:
        raise ValueError(f"packed as {found}, not as {wanted}")
    return packed
