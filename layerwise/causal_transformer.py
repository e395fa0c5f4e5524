"""A small causal transformer over characters whose blocks can be added one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block, init_weights_vit_timm
from torch import Tensor, nn

from layerwise.encoder import StagedEncoder, StagedSpec
from layerwise.lora import add_adapters
from layerwise.pretrained import load_pretrained

EMBEDDING_STD = 0.02
"""Initial standard deviation of the embeddings, equal to that of the linear layers."""


@dataclass(frozen=True)
class CausalTransformerSpec(StagedSpec):
    """Causal transformer that reads a text from left to right.

    Blocks are those of timm's Vision Transformers (pre-norm, GELU, MLP four times as wide) with a causal mask, so that
    image and text encoders of one width and depth have equal blocks. Positions are learnt. The embedding of characters
    is not tied to the head that predicts them: a tied one would change below frozen blocks. Width 256, 8 heads and
    depths 3, 6, 9 and 12 are the family for CAFF (arXiv 2411.07826), whose own sizes are not known: our reading.

    Args:
        vocabulary: Number of different characters.
        context: T, the context length: most characters read at once.
        depth: Number of blocks.
        width: D.
        heads: Attention heads; they divide the width.
        weights: File or folder of pretrained weights, such as the ``encoder`` folder of a run; ``None`` initialises at
            random. Of a deeper network the first blocks are taken.
        ranks: Ranks of the low-rank adapters in the blocks, ascending. Schemes that train adapters set them.

    Raises:
        ValueError: A number is below 1, or the width is no multiple of the heads.
    """

    modality: ClassVar[str] = "text"
    input_dtype: ClassVar[torch.dtype] = torch.int64

    vocabulary: int = 97
    context: int = 128
    depth: int = 3
    width: int = 256
    heads: int = 8
    weights: str | None = None
    ranks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for setting in ("vocabulary", "context", "depth", "width", "heads"):
            if getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")

    @property
    def name(self) -> str:
        """Name shown in results and exported encoders; timm has no model of this name."""
        return "causal_transformer"

    @property
    def input_shape(self) -> tuple[int]:
        """Shape of one text: (T,)."""
        return (self.context,)

    @property
    def positions(self) -> tuple[int]:
        """Shape of a text's features besides the width: one feature a character."""
        return (self.context,)

    def build(self) -> StagedEncoder:
        """Build stem, blocks and final norm.

        Raises:
            FileNotFoundError: ``weights`` names no file.
            ValueError: The pretrained weights belong to another network.
        """
        stem = CharacterStem(self.vocabulary, self.context, self.width)
        blocks = nn.ModuleList(causal_block(self.width, self.heads) for _ in range(self.depth))
        tail = nn.LayerNorm(self.width, eps=1e-6)
        if self.weights:
            load_pretrained(nn.ModuleDict({"stem": stem, "blocks": blocks, "tail": tail}), Path(self.weights))
        adapters = add_adapters(blocks, self.ranks)
        return StagedEncoder(self, stem, list(blocks), tail, [self.width] * self.depth, adapters=adapters)


class CharacterStem(nn.Module):
    """Token and position embedding: character indices (B, T) to (B, T, D), T at most ``context``."""

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        nn.init.trunc_normal_(self.characters.weight, std=EMBEDDING_STD)
        nn.init.trunc_normal_(self.positions, std=EMBEDDING_STD)

    def forward(self, characters: Tensor) -> Tensor:
        return self.characters(characters) + self.positions[: characters.shape[1]]


class CausalAttention(Attention):
    """timm's attention with a causal mask: each position sees itself and those before it."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        B, T, D = x.shape
        query, key, value = self.qkv(x).reshape(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(mixed.transpose(1, 2).reshape(B, T, D))


def causal_block(width: int, heads: int) -> Block:
    """Build a block (B, T, D) to (B, T, D), initialised as in timm's Vision Transformers."""
    block = Block(width, heads, qkv_bias=True)
    block.attn = CausalAttention(width, heads, qkv_bias=True)
    return block.apply(init_weights_vit_timm)
