"""Memory layout of stored tensors: the channel dimension and the cut into quantisation groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

GROUP = 256
"""Values that share a minimum and a step: this many of a channel, or a whole channel plane where that is more."""

CHUNK = 2**18
"""Values quantised at a time, which bounds the codec's working memory to about 5 MiB."""

MIN_PER_CHANNEL = 32
"""Fewest values a channel must have to be quantised on its own."""


@dataclass(frozen=True)
class Chunk:
    """Piece of a block that consists of whole groups.

    Args:
        first: First outer row.
        count: Number of outer rows.
        per_group: Outer rows in a group.
        first_group: Index of the first group.
    """

    first: int
    count: int
    per_group: int
    first_group: int

    @property
    def rows(self) -> slice:
        """Outer rows of the chunk."""
        return slice(self.first, self.first + self.count)

    @property
    def groups(self) -> slice:
        """Groups of the chunk within a channel."""
        return slice(self.first_group, self.first_group + self.count // self.per_group)

    def grouped(self, layout: Layout) -> tuple[int, int, int, int]:
        """Return the chunk's shape (groups, rows of a group, channels, inner)."""
        return self.count // self.per_group, self.per_group, layout.channels, layout.inner


@dataclass(frozen=True)
class Layout:
    """Dense block of memory, viewed as (outer, channels, inner).

    Args:
        outer: Product of the dimensions before the channels.
        channels: Number of channels.
        inner: Product of the dimensions after the channels.
    """

    outer: int
    channels: int
    inner: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.outer * self.channels * self.inner

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Chunks of about ``CHUNK`` elements; rows that fill no group form the last one."""
        per_group = max(1, GROUP // self.inner)
        whole = self.outer - self.outer % per_group
        step = max(1, CHUNK // (per_group * self.channels * self.inner)) * per_group
        chunks = [Chunk(r, min(step, whole - r), per_group, r // per_group) for r in range(0, whole, step)]
        if whole < self.outer:
            chunks.append(Chunk(whole, self.outer - whole, self.outer - whole, whole // per_group))
        return chunks

    def group_sizes(self, device: torch.device) -> Tensor:
        """Return the number of elements in each group of a channel, (groups,)."""
        sizes = [c.per_group * self.inner for c in self.chunks for _ in range(c.count // c.per_group)]
        return torch.tensor(sizes, dtype=torch.float32).to(device, non_blocking=True)

    def packed_bytes(self, bits: int) -> int:
        """Bound the compressed bytes from above: codes, 16-bit minimum and step a group, order of the channels."""
        # Channels of up to three widths are packed apart, and the last byte of each may be partly empty.
        codes = sum(3 + -(-c.count * self.channels * self.inner * bits // 8) for c in self.chunks)
        groups = self.chunks[-1].groups.stop * self.channels
        return codes + 4 * groups + 4 * self.channels


def layout_of(tensor: Tensor) -> Layout:
    """Return the layout of the whole storage behind a tensor.

    Channels are dimension 1 of four-dimensional maps (B, C, H, W) and the last dimension of everything else, wherever
    it lies in memory. A view with gaps, such as queries in a joint projection of queries, keys and values, shows by its
    strides how long the rows of its storage are. A storage whose rows are unknown, or with few values a channel, counts
    as one channel.
    """
    numel = tensor.untyped_storage().nbytes() // tensor.itemsize
    row = _row(tensor)
    one_channel = Layout(numel, 1, 1)
    if not tensor.dim() or numel % row:
        return one_channel
    layout = Layout(numel // row, row, 1)
    if row == tensor.numel() == numel:
        channel = 1 if tensor.dim() == 4 else tensor.dim() - 1
        strides = zip(tensor.shape, tensor.stride(), strict=True)
        outer = prod(size for size, stride in strides if stride > tensor.stride(channel))
        layout = Layout(outer, tensor.shape[channel], numel // (outer * tensor.shape[channel]))
    return layout if layout.outer * layout.inner >= MIN_PER_CHANNEL else one_channel


def _row(tensor: Tensor) -> int:
    """Return the values between the starts of two dense parts of a tensor, or its size where it has no gaps."""
    dense = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != dense:
            return max(1, stride)
        dense *= size
    return dense
