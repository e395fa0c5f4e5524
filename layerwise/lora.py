"""Low-rank adapters on queries and values of a Vision Transformer's blocks (LoRA, Hu et al. 2021, arXiv 2106.09685).

The library peft does not fit, for three reasons: timm joins queries, keys and values in one layer, of which peft adapts
all three or none; a client of smaller rank trains and sends only the first ranks, which therefore must be separate
parts; and peft brings two large packages with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """Low-rank update ``up @ down`` of a square weight (width, width), initially zero.

    ``down`` (rank, width) is initialised like a linear layer's weight, ``up`` (width, rank) with zeros. The update is
    not scaled: alpha equals the rank, so that a client of smaller rank has the same scale (our reading).
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))


class Adapter(nn.Module):
    """Low-rank updates of one block's queries and values, for a group of ranks."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query = LowRank(width, rank)
        self.value = LowRank(width, rank)


class AdaptedQKV(nn.Module):
    """timm's joint projection to queries, keys and values, with adapters on queries and values.

    Its state dict is that of the linear layer it replaces; the adapters belong to the encoder's own parts.

    Args:
        linear: Layer whose parameters are taken over.
        adapters: Adapters of this block, the first ranks first.

    Attributes:
        active: Number of leading adapters that act.
    """

    def __init__(self, linear: nn.Linear, adapters: nn.ModuleList) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        # In a tuple: nn.Module would register a bare list, and its tensors would enter this layer's state dict.
        self._adapters = (adapters,)
        self.active = len(adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, D) to (B, T, 3 D)."""
        joint = F.linear(tokens, self.weight, self.bias)
        if not self.active:
            return joint
        queries, keys, values = joint.chunk(3, dim=-1)
        updates = (F.linear(F.linear(tokens, down), up) for down, up in self._factors())
        return torch.cat((queries + next(updates), keys, values + next(updates)), dim=-1)

    def merged(self) -> Tensor:
        """Return the weight (3 D, D) of an equivalent linear layer."""
        query, value = (up @ down for down, up in self._factors())
        return self.weight + torch.cat((query, torch.zeros_like(query), value))

    def _factors(self) -> list[tuple[Tensor, Tensor]]:
        """Return ``down`` (r, D) and ``up`` (D, r) of queries and of values, r the sum of the active ranks."""
        adapters = list(self._adapters[0])[: self.active]
        parts = [a.query for a in adapters], [a.value for a in adapters]
        return [(torch.cat([p.down for p in each]), torch.cat([p.up for p in each], dim=1)) for each in parts]


class AdaptedBlock(nn.Module):
    """Block together with those of its adapters, or groups of its width, that are trained."""

    def __init__(self, block: nn.Module, adapters: Iterable[nn.Module]) -> None:
        super().__init__()
        self.block = block
        self.adapters = nn.ModuleList(adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.block(tokens)


def add_adapters(blocks: Sequence[nn.Module], ranks: Sequence[int]) -> list[nn.ModuleList]:
    """Insert adapters into the blocks of a Vision Transformer; return those of each block.

    Args:
        blocks: Blocks with timm's joint projection ``attn.qkv``.
        ranks: Ascending ranks. The first adapter has the first rank, each further one the difference to the next rank,
            so that the first g together have rank ``ranks[g - 1]``.

    Raises:
        ValueError: The blocks have no such projection, or a rank is larger than their width.
    """
    added = []
    for block in blocks if ranks else ():
        linear = getattr(getattr(block, "attn", None), "qkv", None)
        if not isinstance(linear, nn.Linear) or linear.out_features != 3 * linear.in_features:
            raise ValueError(f"LoRA needs blocks with the joint projection attn.qkv, not {type(block).__name__}")
        if ranks[-1] > linear.in_features:
            raise ValueError(f"LoRA's ranks must be at most the width {linear.in_features}, got {list(ranks)}")
        sizes = [rank - before for before, rank in zip([0, *ranks], ranks, strict=False)]
        adapters = nn.ModuleList(Adapter(linear.in_features, size) for size in sizes)
        block.attn.qkv = AdaptedQKV(linear, adapters)
        added.append(adapters)
    return added
