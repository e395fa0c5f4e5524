"""Small integers, densely packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Packs codes of 1, 2, 4 or 8 bits.

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
    packed = codes[:size].clone()
    for part in range(1, per_byte):
        packed |= codes[part * size : (part + 1) * size] << (part * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The codes that :func:`pack_bits` packed.

    Args:
        packed: uint8, as it came from :func:`pack_bits`.
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
