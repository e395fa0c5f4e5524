"""Split of a timm Vision Transformer into stem, blocks and tail."""

from __future__ import annotations

from timm.layers import global_pool_nlc
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

POOLS = ("token", "avg", "avgmax", "max")


class ViTStem(nn.Module):
    """Stem with patch embedding, class token and position embedding: images (B, C, H, W) to tokens (B, T, D).

    The stem keeps timm's own module, emptied of blocks, norms and head, so that every embedding variant of timm (class
    token, register tokens, no token, dropout) works unchanged.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        tokens = model._pos_embed(model.patch_embed(images))
        return model.norm_pre(model.patch_drop(tokens))


class ViTTail(nn.Module):
    """Final norm and pooling: tokens (B, T, D) to features (B, D)."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.norm = model.norm
        self.fc_norm = model.fc_norm
        self.pool = model.global_pool
        self.prefix_tokens = model.num_prefix_tokens
        self.include_prefix = model.pool_include_prefix

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = global_pool_nlc(self.norm(tokens), self.pool, self.prefix_tokens, self.include_prefix)
        return self.fc_norm(pooled)


def split_vit(model: VisionTransformer) -> tuple[ViTStem, list[nn.Module], ViTTail, list[int]]:
    """Return the stem, blocks, tail and the feature width after each block.

    Raises:
        ValueError: The model has no blocks, or does not pool to one vector an image by token, mean or maximum.
    """
    if model.global_pool not in POOLS:
        raise ValueError(f"global_pool {model.global_pool!r} is not supported; allowed: {', '.join(POOLS)}")
    if not len(model.blocks):
        raise ValueError("the encoder has no blocks: depth must be at least 1")
    blocks, tail = list(model.blocks), ViTTail(model)
    # The stem keeps the timm module: emptied, so that no block or norm is registered, and counted, twice.
    model.blocks = nn.Sequential()
    model.norm, model.fc_norm, model.head = nn.Identity(), nn.Identity(), nn.Identity()
    return ViTStem(model), blocks, tail, [model.embed_dim] * len(blocks)
