"""Low-bit copies of activations: densely packed codes, stochastic rounding, one bit width a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from layerwise.memory.layout import CHUNK, Chunk, Layout, layout_of

WIDTHS = (8, 4, 2)
# The exponents of float32 in two bytes: float16 would overflow on large activations.
METADATA = torch.bfloat16
OUTWARDS = 2**-8  # more than the relative rounding error of bfloat16

Classes = list[tuple[int, Tensor | None]]


CODEC_BYTES = 12
"""Working memory in bytes for each value that is packed or restored at a time."""


class StoredTensor:
    """Compressed storage of one or more saved tensors, held from the first save until the last use in backward.

    Fake tensors have no data to pack: empty tensors of the largest possible size take the place of the codes.

    Args:
        tensor: Tensor on the storage.
        bits: Mean width of a code.
        generator: Source of the rounding's random numbers.
        note: Callback for every tensor that is held from now on, for the memory account.
    """

    def __init__(self, tensor: Tensor, bits: int, generator: torch.Generator, note: Callable[[Tensor], Tensor]) -> None:
        self._layout, self._dtype, self._note, self._waiting = layout_of(tensor), tensor.dtype, note, 0
        self._packed: Packed | Tensor
        self._restored: Tensor | None = None
        if isinstance(tensor, FakeTensor):
            self._work(tensor)
            packed = torch.empty(self._layout.packed_bytes(bits), dtype=torch.uint8, device=tensor.device)
            self._packed = note(packed)
        else:
            # The whole storage, since other saved tensors may be views of it and share this copy.
            flat = tensor.detach().as_strided((self._layout.numel,), (1,), 0)
            self._packed = compress(flat, self._layout, bits, generator)
            for each in self._packed.tensors():
                note(each)

    def handle(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Return a function that restores the tensor in backward; the storage is freed after its last use."""
        self._waiting += 1
        return partial(self._view, tensor.shape, tensor.stride(), tensor.storage_offset())

    def _view(self, shape: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
        restored = self._restored if self._restored is not None else self._restore()
        self._waiting -= 1
        self._restored = restored if self._waiting > 0 else None
        return restored.as_strided(shape, stride, offset)

    def _restore(self) -> Tensor:
        if isinstance(self._packed, Tensor):
            block = torch.empty(self._layout.numel, dtype=self._dtype, device=self._packed.device)
            self._work(self._packed)
        else:
            block = self._packed.restore()
        return self._note(block)

    def _work(self, like: Tensor) -> None:
        # Freed at once: like the temporary tensors of the codec it only raises the peak.
        torch.empty(CODEC_BYTES * min(CHUNK, self._layout.numel), dtype=torch.uint8, device=like.device)


@dataclass(frozen=True)
class Packed:
    """Quantised block of floats.

    Args:
        layout: Layout of the block.
        dtype: Data type of the restored block.
        codes: Packed codes, uint8, for every chunk of the layout and every class of channels.
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

    def tensors(self) -> list[Tensor]:
        """Return every tensor that is held."""
        order = [channels for _, channels in self.classes if channels is not None]
        return [self.low, self.step, *order, *(code for chunk in self.codes for code in chunk)]

    def restore(self) -> Tensor:
        """Return the block as floats, flat (N,)."""
        block = torch.empty(self.layout.numel, dtype=self.dtype, device=self.low.device)
        rows = block.view(self.layout.outer, self.layout.channels, self.layout.inner)
        for chunk, codes in zip(self.layout.chunks, self.codes, strict=True):
            levels = _merge(codes, self.classes, chunk, self.layout)
            step, low = _spread(self.step, chunk), _spread(self.low, chunk)
            rows[chunk.rows] = (levels.view(chunk.grouped(self.layout)) * step).add_(low).flatten(0, 1)
        return block


def compress(block: Tensor, layout: Layout, bits: int, generator: torch.Generator) -> Packed:
    """Quantise a block with stochastic rounding.

    Within every group a value x becomes floor((x - low) / step + u), u uniform in [0, 1), so that the mean over u is x
    (ActNN, arXiv 2104.14129, section 3; FedHybrid's own codec is not published). u has 16 random bits, which leaves a
    bias of at most 2**-16 steps; the error is below one step. Low and step are bfloat16, rounded outwards. A group with
    a value that is not finite is not finite afterwards.

    Args:
        block: Floats, flat (N,), dense in memory as ``layout`` says.
        layout: Layout of the block.
        bits: Mean width of a code, 8, 4 or 2; at 4 the channels get 8, 4 or 2 bits by ``allocate_bits``.
        generator: Source of the rounding's random numbers, on the block's device.
    """
    rows = block.view(layout.outer, layout.channels, layout.inner)
    grouped = [(chunk, rows[chunk.rows].view(chunk.grouped(layout))) for chunk in layout.chunks]
    low = torch.cat([values.amin((1, 3)) for _, values in grouped]).float()
    high = torch.cat([values.amax((1, 3)) for _, values in grouped]).float()
    # The group's range must enclose its values after rounding to bfloat16: a value below ``low`` would give a negative
    # code, which wraps around in uint8. So low is rounded down, and step up.
    low = (low - low.abs() * OUTWARDS).to(METADATA)
    spread = high - low.float()
    classes = _classes(spread, layout, bits)
    levels = _levels(classes, spread)
    step = (spread / levels * (1 + OUTWARDS)).to(METADATA)

    def encode(chunk: Chunk, values: Tensor) -> list[Tensor]:
        scaled = _scale(values, _spread(low, chunk), _spread(step, chunk), generator)
        # The noise can lift the largest value above the last code, which its bits could not hold.
        whole = torch.minimum(scaled, levels[:, None]).to(torch.uint8).flatten(0, 1)
        parts = [(whole if channels is None else whole.index_select(1, channels), width) for width, channels in classes]
        return [pack_bits(part.flatten(), width) for part, width in parts]

    # A function of its own frees a chunk's floats before the next one needs room: ``CODEC_BYTES`` counts on it.
    codes = [encode(chunk, values) for chunk, values in grouped]
    return Packed(layout, block.dtype, codes, classes, low, step)


def _classes(spread: Tensor, layout: Layout, bits: int) -> Classes:
    # An average at either end leaves nothing to distribute.
    if bits in (WIDTHS[0], WIDTHS[-1]):
        return [(bits, None)]
    widths = allocate_bits(layout.group_sizes(spread.device) @ spread.square() / 4, bits)
    members = {width: torch.nonzero(widths == width).flatten().int() for width in WIDTHS}
    if len(members[bits]) == layout.channels:
        return [(bits, None)]
    return [(width, channels) for width, channels in members.items() if len(channels)]


def _levels(classes: Classes, spread: Tensor) -> Tensor:
    """Return the highest code of each channel, (C,)."""
    levels = spread.new_empty(spread.shape[1])
    for bits, channels in classes:
        levels[slice(None) if channels is None else channels] = 2**bits - 1
    return levels


def _scale(values: Tensor, low: Tensor, step: Tensor, generator: torch.Generator) -> Tensor:
    """Return the values in steps above the minimum of their group, plus uniform noise: codes before they are cut."""
    # A group of zeros has step 0: its codes are all 0, and it is restored from ``low`` alone.
    scaled = (values - low).div_(torch.where(step > 0, step, 1))
    return scaled.add_(_uniform(values, generator))


def _uniform(values: Tensor, generator: torch.Generator) -> Tensor:
    """Draw numbers in (0, 1) in the shape of ``values``, from 16 random bits each."""
    # One 64-bit draw serves four values: a quarter of the calls to the generator.
    drawn = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=generator)
    # The half centres the values in their intervals: without it their mean is below 1/2, and rounding is biased.
    return drawn.view(torch.int16)[: values.numel()].view(values.shape).float().add_(2**15 + 0.5).mul_(2**-16)


def _merge(codes: list[Tensor], classes: Classes, chunk: Chunk, layout: Layout) -> Tensor:
    """Unpack a chunk's codes in the order of its channels, uint8 (rows, C, I)."""
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
    """Return a chunk's part of a (groups, C) table in a form that broadcasts over (groups, rows, C, I)."""
    return metadata[chunk.groups].float()[:, None, :, None]


def allocate_bits(weights: Tensor, average: int) -> Tensor:
    """Distribute an average bit width among channels of equal size so that the variance of rounding is least.

    Rounding a channel stochastically to b bits has a variance of at most ``weight / (2**b - 1)**2``. All channels start
    at 8 bits, and the one whose step down raises the sum least, per bit saved, goes first, until the average is met
    (the allocation of ActNN, arXiv 2104.14129, section 4.2, and GACT, arXiv 2206.11357, with channels as the unit;
    FedHybrid's own rule for its "channel-wise mixed compression" is not published).

    Args:
        weights: Sum over a channel's elements of a quarter of the squared range, (C,).
        average: Mean width that must not be exceeded: 8, 4 or 2.

    Returns:
        Width of each channel, one of 8, 4 and 2, int64 (C,).
    """
    channels = len(weights)
    variance = {bits: weights / (2**bits - 1) ** 2 for bits in WIDTHS}
    steps = list(pairwise(WIDTHS))
    # The rise per saved bit from 8 to 4 bits is always below that from 4 to 2, so sorting all steps at once never
    # takes a channel's second step before its first.
    rise = torch.cat([(variance[low] - variance[high]) / (high - low) for high, low in steps])
    saved = torch.cat([torch.full_like(weights, high - low, dtype=torch.int64) for high, low in steps])
    order = torch.argsort(rise, stable=True)
    before = saved[order].cumsum(0) - saved[order]
    taken = torch.zeros_like(saved)
    taken[order] = saved[order] * (before < (WIDTHS[0] - average) * channels)
    return WIDTHS[0] - taken.view(len(steps), channels).sum(0)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of 1, 2, 4 or 8 bits.

    The codes are cut into 8 / bits equal parts, and each byte holds one code of every part.

    Args:
        codes: uint8 (N,), each below 2 ** bits.
        bits: Width of a code.

    Returns:
        uint8 (ceil(N * bits / 8),).
    """
    if bits == 8:
        return codes
    per_byte = 8 // bits
    size = -(-len(codes) // per_byte)
    if size * per_byte != len(codes):
        codes = torch.nn.functional.pad(codes, (0, size * per_byte - len(codes)))
    # Codes that share a byte lie a whole part apart, so that every shift works on one contiguous slice.
    packed = codes[:size].clone()
    for part in range(1, per_byte):
        packed |= codes[part * size : (part + 1) * size] << (part * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the codes that ``pack_bits`` packed.

    Args:
        packed: uint8, as returned by ``pack_bits``.
        bits: Width of a code.
        count: Number N of codes.

    Returns:
        uint8 (N,).
    """
    if bits == 8:
        return packed
    mask = 2**bits - 1
    parts = [(packed >> (part * bits)) & mask for part in range(8 // bits)]
    return torch.cat(parts)[:count]
