"""Width of a Vision Transformer's blocks: groups of attention heads and hidden units, which a client may lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class WidthGroup(nn.Module):
    """Equal share of a block's heads and hidden units, without the biases behind them, which all groups share.

    Args:
        attn: Attention of some of the heads.
        mlp: Layers with some of the hidden units.
    """

    def __init__(self, attn: Attention, mlp: Mlp) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp


class GroupSum(nn.Module):
    """Sum of what groups add to the tokens, in place of a block's attention or hidden layers.

    With n of G groups the sum is multiplied by G / n, as HeteroFL's scaler does (Diao et al. 2021, arXiv 2010.01264,
    section 3), so that blocks of all widths give tokens of one size; with all groups it is the block's own.

    Args:
        groups: Layers of each group.
        bias: Shared bias (D,).

    Attributes:
        active: Numbers of the groups that act; initially all.
    """

    def __init__(self, groups: Sequence[nn.Module], bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias
        # In a tuple: nn.Module would register them, and a client would hold groups that it lacks.
        self._groups = tuple(groups)
        self.number = len(groups)
        self.active = tuple(range(self.number))

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        """Map tokens (B, T, D) to (B, T, D)."""
        parts = [self._groups[number](tokens, **options) for number in self.active]
        return sum(parts[1:], parts[0]) * (self.number / len(parts)) + self.bias


def add_groups(blocks: Sequence[nn.Module], number: int) -> list[nn.ModuleList]:
    """Divide the heads and hidden units of a Vision Transformer's blocks into groups; return those of each block.

    The blocks compute what they did, up to rounding. The width of the tokens stays.

    Raises:
        ValueError: A block is of another kind, or has heads or hidden units that cannot be divided evenly.
    """
    return [_divide(block, number) for block in blocks] if number > 1 else []


def whole_block(block: Any, groups: Sequence[Any]) -> dict[str, Tensor]:
    """Return the tensors of a block as it was before its division, by timm's names."""
    state = dict(block.state_dict())
    state["attn.proj.bias"], state["mlp.fc2.bias"] = state.pop("attn.bias"), state.pop("mlp.bias")
    attns, mlps = [group.attn for group in groups], [group.mlp for group in groups]
    for name in ("weight", "bias") if attns[0].qkv.bias is not None else ("weight",):
        rows = [getattr(attn.qkv, name).detach().unflatten(0, (3, -1)) for attn in attns]
        state[f"attn.qkv.{name}"] = torch.cat(rows, dim=1).flatten(0, 1)
    for name in ("weight", "bias"):
        state[f"mlp.fc1.{name}"] = torch.cat([getattr(mlp.fc1, name).detach() for mlp in mlps])
    state["attn.proj.weight"] = torch.cat([attn.proj.weight.detach() for attn in attns], dim=1)
    state["mlp.fc2.weight"] = torch.cat([mlp.fc2.weight.detach() for mlp in mlps], dim=1)
    return state


def _divide(block: Any, number: int) -> nn.ModuleList:
    _check_divisible(block, number)
    attn, mlp = block.attn, block.mlp
    groups = [_group(attn, mlp, place, number) for place in range(number)]
    block.attn = GroupSum([group.attn for group in groups], attn.proj.bias)
    block.mlp = GroupSum([group.mlp for group in groups], mlp.fc2.bias)
    return nn.ModuleList(groups)


@torch.no_grad()
def _group(attn: Attention, mlp: Mlp, place: int, number: int) -> WidthGroup:
    """Copy a group's share of the weights."""
    width, heads, units = attn.qkv.in_features, attn.num_heads // number, mlp.fc1.out_features // number
    bias = attn.qkv.bias is not None
    own = Attention(width, heads, attn_head_dim=attn.head_dim, dim_out=width, qkv_bias=bias, proj_bias=False)
    layers = Mlp(width, units, width, type(mlp.act), bias=(True, False))
    for name, parameter in own.qkv.named_parameters():
        rows = getattr(attn.qkv, name).unflatten(0, (3, number, -1))[:, place]
        parameter.copy_(rows.flatten(0, 1))
    own.proj.weight.copy_(attn.proj.weight.unflatten(1, (number, -1))[:, place])
    for name, parameter in layers.fc1.named_parameters():
        parameter.copy_(getattr(mlp.fc1, name).unflatten(0, (number, -1))[place])
    layers.fc2.weight.copy_(mlp.fc2.weight.unflatten(1, (number, -1))[:, place])
    return WidthGroup(own, layers)


def _check_divisible(block: Any, number: int) -> None:
    plain = type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp
    # Nothing but linear layers and their activation: norms would join the groups, and dropout act on each by itself.
    known = (nn.Linear, nn.Identity, Attention, Mlp, type(block.mlp.act)) if plain else ()
    layers = [*block.attn.modules(), *block.mlp.modules()] if plain else []
    odd = [layer for layer in layers if not isinstance(layer, known) and getattr(layer, "p", True)]
    if not plain or odd or block.attn.proj.bias is None or block.attn.gate is not None:
        raise ValueError(
            "width groups need timm's plain transformer blocks without dropout or further norms, not "
            f"{type(odd[0] if odd else block).__name__}"
        )
    for name, count in (("heads", block.attn.num_heads), ("hidden units", block.mlp.fc1.out_features)):
        if count % number:
            raise ValueError(f"{count} {name} of a block cannot be divided into {number} groups of one size")
