"""How many bits each channel gets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

WIDTHS = (8, 4, 2)


def allocate_bits(weights: Tensor, average: int) -> Tensor:
    """Shares an average width among channels of equal size so that the variance of rounding is least.

    Rounding a channel stochastically to b bits has a variance of at most ``weight / (2**b - 1)**2``. All channels
    start at 8 bits, and the one whose step down raises the sum least, per bit saved, goes first, until the average
    is met (the allocation of ActNN, arXiv 2104.14129, section 4.2, and GACT, arXiv 2206.11357, with channels as the
    unit; FedHybrid's own rule for its "channel-wise mixed compression" is not published).

    Args:
        weights: Sum over a channel's elements of a quarter of the squared range, (C,).
        average: Mean width that must not be exceeded: 8, 4 or 2.

    Returns:
        Width of each channel, one of 8, 4 and 2, int64 (C,).
    """
    channels = len(weights)
    variance = {bits: weights / (2**bits - 1) ** 2 for bits in WIDTHS}
    steps = list(pairwise(WIDTHS))
    rise = torch.cat([(variance[low] - variance[high]) / (high - low) for high, low in steps])
    saved = torch.cat([torch.full_like(weights, high - low, dtype=torch.int64) for high, low in steps])
    order = torch.argsort(rise, stable=True)
    before = saved[order].cumsum(0) - saved[order]
    taken = torch.zeros_like(saved)
    taken[order] = saved[order] * (before < (WIDTHS[0] - average) * channels)
    return WIDTHS[0] - taken.view(len(steps), channels).sum(0)
