import pytest
import torch

from layerwise.memory.bits import pack_bits, unpack_bits


def test_by_hand():
    """Each byte holds one code of every eighth, quarter or half of the codes, the first part lowest."""
    codes = torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8)
    assert pack_bits(codes, 2).tolist() == [1 | 3 << 2 | 1 << 4, 2 | 0 << 2]
    assert pack_bits(codes, 4).tolist() == [1 | 0 << 4, 2 | 1 << 4, 3]
    assert pack_bits(codes, 8).tolist() == [1, 2, 3, 0, 1]
    assert pack_bits(codes % 2, 1).tolist() == [0b10101]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 255, 1001])
def test_round_trip(bits, count):
    codes = torch.randint(2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.nbytes == -(-count * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, count), codes)
