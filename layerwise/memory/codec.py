"""Low-bit copies of activations: packed densely, rounded stochastically, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.memory.allocation import WIDTHS, allocate_bits
from layerwise.memory.bits import pack_bits, unpack_bits
from layerwise.memory.layout import Chunk, Layout

METADATA = torch.bfloat16
OUTWARDS = 2**-8  # more than the relative rounding error of bfloat16

Classes = list[tuple[int, Tensor | None]]


@dataclass(frozen=True)
class Packed:
    """A compressed block of floats.

    Args:
        layout: Its layout.
        dtype: Its data type.
        codes: For every chunk of the layout and every class of channels the packed codes, uint8.
        classes: (bits, channels of that width, int32); ``None`` stands for all channels.
        low: Minimum of each group, (groups, channels).
        step: Distance between codes of each group, (groups, channels).
    """

    layout: Layout
    dtype: torch.dtype
    codes: list[list[Tensor]]
    classes: Classes
    low: Tensor
    step: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        order = [channels for _, channels in self.classes if channels is not None]
        return sum(t.nbytes for t in [self.low, self.step, *order, *(code for chunk in self.codes for code in chunk)])

    def restore(self) -> Tensor:
        """The block as floats, flat (N,)."""
        block = torch.empty(self.layout.numel, dtype=self.dtype, device=self.low.device)
        rows = block.view(self.layout.outer, self.layout.channels, self.layout.inner)
        for chunk, codes in zip(self.layout.chunks(), self.codes, strict=True):
            levels = _merge(codes, self.classes, chunk, self.layout)
            step, low = _spread(self.step, chunk), _spread(self.low, chunk)
            rows[chunk.rows] = (levels.view(chunk.grouped(self.layout)) * step).add_(low).flatten(0, 1)
        return block


@dataclass(frozen=True)
class PackedMask:
    """A compressed block that takes two values only, without loss.

    Args:
        numel: Number of elements.
        codes: One bit an element, uint8.
        low: Smaller value, a scalar.
        high: Larger value, a scalar.
    """

    numel: int
    codes: Tensor
    low: Tensor
    high: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.nbytes + self.low.nbytes + self.high.nbytes

    def restore(self) -> Tensor:
        """The block as it was, flat (N,)."""
        return torch.where(unpack_bits(self.codes, 1, self.numel).bool(), self.high, self.low)


def compress(block: Tensor, layout: Layout, bits: int, generator: torch.Generator) -> Packed:
    """Quantises a block with stochastic rounding.

    Within every group a value x becomes floor((x - low) / step + u), u uniform in [0, 1), so that the mean over u
    is x (ActNN, arXiv 2104.14129, section 3; FedHybrid's own codec is not published). u has 16 random bits, which
    leaves a bias of at most 2**-16 steps; the error is below one step. Low and step are bfloat16, rounded outwards.
    A group with a value that is not finite is not finite afterwards.

    Args:
        block: Floats, flat (N,), dense in memory as ``layout`` says.
        layout: Its layout.
        bits: Mean width of a code, 8, 4 or 2; at 4 the channels get 8, 4 or 2 bits by :func:`allocate_bits`.
        generator: Of the rounding, on the block's device.
    """
    rows = block.view(layout.outer, layout.channels, layout.inner)
    grouped = [(chunk, rows[chunk.rows].view(chunk.grouped(layout))) for chunk in layout.chunks()]
    low = torch.cat([values.amin((1, 3)) for _, values in grouped]).float()
    high = torch.cat([values.amax((1, 3)) for _, values in grouped]).float()
    low = (low - low.abs() * OUTWARDS).to(METADATA)
    spread = high - low.float()
    classes = _classes(spread, layout, bits)
    levels = _levels(classes, spread)
    step = (spread / levels * (1 + OUTWARDS)).to(METADATA)
    codes = [_encode(values, chunk, low, step, levels, classes, generator) for chunk, values in grouped]
    return Packed(layout, block.dtype, codes, classes, low, step)


def compress_mask(block: Tensor) -> PackedMask:
    """Packs a block that takes at most two values, for example booleans or a dropout mask, to one bit an element."""
    low, high = block.aminmax()
    return PackedMask(len(block), pack_bits((block == high).to(torch.uint8), 1), low, high)


def mask_bytes(numel: int, itemsize: int) -> int:
    """Bytes of a packed mask."""
    return -(-numel // 8) + 2 * itemsize


def _classes(spread: Tensor, layout: Layout, bits: int) -> Classes:
    if bits in (WIDTHS[0], WIDTHS[-1]):
        return [(bits, None)]
    widths = allocate_bits(layout.group_sizes(spread.device) @ spread.square() / 4, bits)
    members = {width: torch.nonzero(widths == width).flatten().int() for width in WIDTHS}
    if len(members[bits]) == layout.channels:
        return [(bits, None)]
    return [(width, channels) for width, channels in members.items() if len(channels)]


def _levels(classes: Classes, spread: Tensor) -> Tensor:
    """Highest code of each channel, (C,)."""
    levels = spread.new_empty(spread.shape[1])
    for bits, channels in classes:
        levels[slice(None) if channels is None else channels] = 2**bits - 1
    return levels


def _encode(
    values: Tensor,
    chunk: Chunk,
    low: Tensor,
    step: Tensor,
    levels: Tensor,
    classes: Classes,
    generator: torch.Generator,
) -> list[Tensor]:
    low, step = _spread(low, chunk), _spread(step, chunk)
    scaled = (values - low).div_(torch.where(step > 0, step, 1))
    scaled += _uniform(values, generator)
    codes = torch.minimum(scaled, levels[:, None]).to(torch.uint8).flatten(0, 1)
    return [
        pack_bits((codes if channels is None else codes.index_select(1, channels)).flatten(), bits)
        for bits, channels in classes
    ]


def _uniform(values: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in (0, 1) in the shape of ``values``, from 16 random bits each."""
    drawn = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=generator)
    return drawn.view(torch.int16)[: values.numel()].view(values.shape).float().add_(2**15 + 0.5).mul_(2**-16)


def _merge(codes: list[Tensor], classes: Classes, chunk: Chunk, layout: Layout) -> Tensor:
    """The codes of a chunk in the order of its channels, uint8 (rows, C, I)."""
    shape = (chunk.count, layout.channels, layout.inner)
    if classes[0][1] is None:
        return unpack_bits(codes[0], classes[0][0], chunk.count * layout.channels * layout.inner).view(shape)
    merged = torch.empty(shape, dtype=torch.uint8, device=codes[0].device)
    for packed, (bits, channels) in zip(codes, classes, strict=True):
        assert channels is not None
        count = chunk.count * len(channels) * layout.inner
        merged.index_copy_(1, channels.long(), unpack_bits(packed, bits, count).view(chunk.count, -1, layout.inner))
    return merged


def _spread(metadata: Tensor, chunk: Chunk) -> Tensor:
    """A chunk's part of a (groups, C) table in a form that broadcasts over (groups, rows, C, I)."""
    return metadata[chunk.groups].float()[:, None, :, None]
