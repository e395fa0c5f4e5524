from itertools import product

import pytest
import torch

from layerwise import LiveBytes
from layerwise.memory.codec import WIDTHS, allocate_bits, compress, pack_bits, unpack_bits
from layerwise.memory.layout import CHUNK, Layout, layout_of

LAYOUTS = [
    Layout(512, 3, 1),  # (B, T, D): groups of 256 rows
    Layout(4, 5, 64),  # (B, C, H, W): groups of four planes
    Layout(7, 2, 300),  # large planes: a group each
    Layout(700, 1, 1),  # flat, with a group that is not full
    Layout(33, 7, 5),  # fewer rows than a group
    Layout(1, 1, 1),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def block_of(layout, dtype=torch.float32, seed=0):
    return (torch.randn(layout.numel, generator=generator(seed)) * 3 + 1).to(dtype)


def nbytes_of(packed):
    return sum(tensor.nbytes for tensor in packed.tensors())


def test_by_hand():
    """0, 1, ... 255 at eight bits: the step is one, but for the outward rounding of 2**-8."""
    block = torch.arange(256.0)
    packed = compress(block, Layout(256, 1, 1), 8, generator())
    assert packed.low.tolist() == [[0.0]]
    assert packed.step.tolist() == [[pytest.approx(1, abs=2**-7)]]
    assert packed.step.item() >= 1
    assert nbytes_of(packed) == 256 + 2 + 2
    assert (packed.restore() - block).abs().max() <= packed.step.item()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_error_is_below_a_step(layout, bits):
    block = block_of(layout)
    packed = compress(block, layout, bits, generator())
    widths = torch.zeros(layout.channels)
    for width, channels in packed.classes:
        widths[slice(None) if channels is None else channels] = width
    for chunk in layout.chunks:
        shape = chunk.grouped(layout)
        rows = (layout.outer, layout.channels, layout.inner)
        before = block.view(rows)[chunk.rows].view(shape)
        error = (packed.restore().view(rows)[chunk.rows].view(shape) - before).abs().amax((1, 3))
        step = packed.step[chunk.groups].float()
        assert (error <= step * (1 + 1e-5) + 1e-6).all()
        spread = before.amax((1, 3)) - before.amin((1, 3))
        bound = (spread + before.amin((1, 3)).abs() * 2**-7) / (2**widths - 1)
        assert (step <= bound * 1.01).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_size_is_known_before(layout, bits):
    nbytes = nbytes_of(compress(block_of(layout), layout, bits, generator()))
    assert nbytes <= layout.packed_bytes(bits)
    assert nbytes >= 0.95 * layout.packed_bytes(bits) - 4 * layout.channels - 8


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_is_unbiased(bits):
    """The mean of many draws comes as near as its standard error allows."""
    layout, draws = Layout(64, 4, 1), 4000
    block, source = block_of(layout), generator(1)
    restored = torch.stack([compress(block, layout, bits, source).restore() for _ in range(draws)])
    standard_error = restored.std(0) / draws**0.5
    assert ((restored.mean(0) - block).abs() <= 5 * standard_error + 1e-5).all()


def test_codes_of_a_channel_with_a_wide_range_are_wider():
    block = torch.randn(512, 6, generator=generator()) * torch.tensor([1, 1, 100, 1, 1, 1.0])
    packed = compress(block.flatten(), Layout(512, 6, 1), 4, generator())
    widths = {int(c): width for width, channels in packed.classes for c in channels}
    assert widths[2] == 8
    assert sum(widths.values()) <= 4 * 6
    assert nbytes_of(packed) == 512 * sum(widths.values()) // 8 + 2 * 2 * 2 * 6 + 4 * 6


def test_channels_are_restored_in_their_place():
    block = torch.randn(512, 6, generator=generator()) * torch.tensor([1, 9, 100, 1, 3, 1.0]) + torch.arange(6) * 1000
    restored = compress(block.flatten(), Layout(512, 6, 1), 4, generator()).restore().view(512, 6)
    assert torch.equal((restored.mean(0) / 1000).round(), torch.arange(6.0))


def test_seed_decides():
    layout = Layout(512, 3, 1)
    first, second, third = (compress(block_of(layout), layout, 4, generator(s)).restore() for s in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_other_floats(dtype, bits):
    layout = Layout(512, 3, 1)
    block = block_of(layout, dtype)
    restored = compress(block, layout, bits, generator()).restore()
    assert restored.dtype == dtype
    reference = compress(block.float(), layout, bits, generator()).restore()
    assert torch.allclose(restored.float(), reference, rtol=2**-7, atol=1e-2)


def test_constants_zeros_and_what_is_not_finite():
    layout = Layout(768, 1, 1)
    block = torch.zeros(768)
    block[256:512] = 0.3
    block[512:], block[600] = 1.0, float("inf")
    restored = compress(block, layout, 2, generator()).restore()
    assert torch.equal(restored[:256], torch.zeros(256))
    assert torch.allclose(restored[256:512], block[256:512], rtol=2**-6)
    assert not restored[512:].isfinite().any()


@pytest.mark.parametrize(
    ("tensor", "layout"),
    [
        (torch.empty(2, 3, 8, 8), Layout(2, 3, 64)),
        (torch.empty(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), Layout(128, 3, 1)),
        (torch.empty(2, 50, 6), Layout(100, 6, 1)),
        (torch.empty(40, 6), Layout(40, 6, 1)),
        (torch.empty(6, 40).T, Layout(1, 6, 40)),
        (torch.empty(4, 6), Layout(24, 1, 1)),  # few values a channel
        (torch.empty(40), Layout(40, 1, 1)),
        (torch.empty(()), Layout(1, 1, 1)),
        (torch.empty(100, 6)[:, :3], Layout(100, 6, 1)),  # gaps tell the length of a row
        (torch.empty(8, 7, 3, 2, 8).permute(2, 0, 3, 1, 4)[1], Layout(56, 48, 1)),  # keys in a joint projection
        (torch.empty(6).expand(100, 6), Layout(6, 1, 1)),
    ],
    ids=lambda item: str(tuple(item.shape)) if isinstance(item, torch.Tensor) else str(item),
)
def test_channels_are_found_in_memory(tensor, layout):
    assert layout_of(tensor) == layout


def variance(weights, bits):
    return sum(float(weight) / (2**b - 1) ** 2 for weight, b in zip(weights, bits, strict=True))


def test_allocation_by_hand():
    """At four bits the heavy channel keeps eight, and two light ones fall to two to pay for it."""
    assert allocate_bits(torch.tensor([1.0, 1000.0, 1.1]), 4).tolist() == [2, 8, 2]
    assert allocate_bits(torch.ones(5), 4).tolist() == [4] * 5


@pytest.mark.parametrize("average", WIDTHS)
@pytest.mark.parametrize("seed", range(5))
def test_average_is_never_exceeded_and_nearly_used(average, seed):
    bits = allocate_bits(torch.rand(37, generator=torch.Generator().manual_seed(seed)) ** 4, average)
    assert set(bits.tolist()) <= set(WIDTHS)
    assert average * 37 - 4 < bits.sum() <= average * 37


@pytest.mark.parametrize("seed", range(10))
def test_against_every_allocation_that_uses_as_few_bits(seed):
    """A greedy allocation is the best among all that take no more bits than it took."""
    weights = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 6
    chosen = allocate_bits(weights, 4)
    rivals = [bits for bits in product(WIDTHS, repeat=6) if sum(bits) <= int(chosen.sum())]
    assert variance(weights, chosen.tolist()) <= min(variance(weights, bits) for bits in rivals) * (1 + 1e-9)


def test_channels_without_range_and_without_sense():
    assert allocate_bits(torch.zeros(4), 4).sum() <= 16
    assert allocate_bits(torch.tensor([1.0, float("nan"), 1.0, 1.0]), 4)[1] == 8


def test_packing_by_hand():
    """Each byte holds one code of every eighth, quarter or half of the codes, the first part lowest."""
    codes = torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8)
    assert pack_bits(codes, 2).tolist() == [1 | 3 << 2 | 1 << 4, 2 | 0 << 2]
    assert pack_bits(codes, 4).tolist() == [1 | 0 << 4, 2 | 1 << 4, 3]
    assert pack_bits(codes, 8).tolist() == [1, 2, 3, 0, 1]
    assert pack_bits(codes % 2, 1).tolist() == [0b10101]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 255, 1001])
def test_what_is_packed_is_unpacked(bits, count):
    codes = torch.randint(2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.nbytes == -(-count * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_chunk_is_freed_before_the_next(bits):
    """The work of one chunk and all codes: memory plans count on it."""
    block = torch.randn(4 * CHUNK, generator=generator())
    with LiveBytes([block]) as live:
        compress(block, Layout(4 * CHUNK, 1, 1), bits, generator())
    assert live.peak - block.nbytes <= (10 + 4 * bits / 8) * CHUNK
