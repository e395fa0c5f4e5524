"""Masked autoencoder: the hidden patches of an image are reconstructed from the visible ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_methods.method import Foundation, Inputs, Method, StepOutput
from ssl_methods.setting_checks import check_at_least

TOKEN_STD = 0.02


class MAE(Method):
    """MAE (He et al. 2022, arXiv 2111.06377, section 3) of one view; the decoder is the head.

    The encoder gets visible patches only: all layers of a stage, frozen or trained, run on a quarter of the tokens. Our
    reading for layer-wise training: in each stage the decoder reconstructs from the newest block's tokens, after the
    final norm, which is applied to every token and not to their mean. Hidden patches are drawn anew in every step, from
    the augmentation's first kind of view; the paper augments by crops and flips alone. The position embedding of the
    encoder is that of its settings. The paper's decoder has 8 blocks of width 512; defaults are for small devices.

    Args:
        foundation: Backbone, a Vision Transformer with its stem, augmentation and optimizer.
        mask_ratio: Share of the patches that are hidden.
        normalized: Reconstruct patches with mean 0 and variance 1 each, the paper's better variant.
        decoder_dim: Width of the decoder, a multiple of 4 and of its attention heads.
        decoder_blocks: Transformer blocks of the decoder.
        decoder_heads: Attention heads of each.

    Raises:
        ValueError: The encoder takes no patches, or a setting is out of its range.
    """

    dense = True

    def __init__(
        self,
        foundation: Foundation,
        mask_ratio: float = 0.75,
        normalized: bool = True,
        decoder_dim: int = 128,
        decoder_blocks: int = 2,
        decoder_heads: int = 4,
    ) -> None:
        super().__init__(foundation)
        check_at_least(1, decoder_dim=decoder_dim, decoder_blocks=decoder_blocks, decoder_heads=decoder_heads)
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ValueError(
                f"decoder_dim must be a multiple of 4 and of decoder_heads {decoder_heads}, got {decoder_dim}"
            )
        stem: Any = getattr(foundation.backbone, "stem", None)
        if getattr(stem, "grid", None) is None:
            raise ValueError(
                "MAE hides patches, and this encoder's stem takes none: set model.encoder.name to a Vision Transformer "
                "such as vit_tiny_patch16_224, or choose another model.method"
            )
        self.patch, grid, channels = stem.patch, stem.grid, stem.channels
        self.normalized = normalized
        self.total = grid[0] * grid[1]
        self.visible = visible_patches(self.total, mask_ratio)
        pixels = channels * self.patch[0] * self.patch[1]
        sizes = {"dim": decoder_dim, "blocks": decoder_blocks, "heads": decoder_heads}
        self.decoder = Decoder(self.feature_dim, grid=grid, visible=self.visible, pixels=pixels, **sizes)

    def heads(self) -> dict[str, nn.Module]:
        """Return the decoder."""
        return {"decoder": self.decoder}

    def check_encoder(self, spec: Any) -> None:
        """Refuse an encoder whose stand-ins for missing blocks need all patches.

        Raises:
            ValueError: It has such stand-ins, or is for other samples.
        """
        super().check_encoder(spec)
        if spec.output == "convolution":
            raise ValueError("MAE hides patches, and encoder.output 'convolution' needs all of them: set it to linear")

    def inputs(self, images: Tensor, labels: Tensor) -> Inputs:
        """Return visible patches with their places, the order of all patches, and what the hidden ones are.

        Returns:
            Visible patches (B, V, 1 + pixels), the place of each in front of its pixels; order (B, N) of all patches,
            visible ones first; targets (B, N - V, pixels).
        """
        (view,) = super().inputs(images, labels)
        patches = F.unfold(view, self.patch, stride=self.patch).transpose(1, 2)
        drawn = torch.rand(len(view), self.total, generator=self.generator, device=self.generator.device)
        order = drawn.argsort(dim=1).to(view.device, non_blocking=True)
        shuffled = patches.gather(1, order.unsqueeze(2).expand_as(patches))
        seen, hidden = shuffled[:, : self.visible], shuffled[:, self.visible :]
        places = order[:, : self.visible, None].to(seen.dtype)
        return torch.cat([places, seen], dim=2), order, normalize(hidden) if self.normalized else hidden

    def example_inputs(self, shape: tuple[int, ...]) -> Inputs:
        """Return inputs of the same form, whose patches are all the first."""
        pixels, hidden = self.decoder.pixels.out_features, self.total - self.visible
        view, target = torch.zeros(shape[0], self.visible, 1 + pixels), torch.zeros(shape[0], hidden, pixels)
        return view, torch.zeros(shape[0], self.total, dtype=torch.long), target

    def step(self, hidden: Inputs) -> StepOutput:
        """Compute the mean squared error of the hidden patches' pixels."""
        view, order, target = hidden
        pixels = self.decoder(self.backbone(view), order)
        return StepOutput(F.mse_loss(pixels, target), (pixels,))


class Decoder(nn.Module):
    """Decoder of MAE: tokens of visible patches, and a shared mask token for each hidden one, to hidden pixels.

    Patches stay in their shuffled order: what tells them apart is the position embedding alone, of fixed sines and
    cosines, which is computed and not sent.

    Args:
        width: Width D of the encoder's tokens.
        grid: Rows and columns of patches.
        visible: Number V of visible patches.
        pixels: Values of a patch.
        dim: Width of the decoder.
        blocks: Transformer blocks.
        heads: Attention heads of each.
    """

    def __init__(
        self, width: int, *, grid: tuple[int, int], visible: int, pixels: int, dim: int, blocks: int, heads: int
    ) -> None:
        super().__init__()
        self.grid, self.visible = grid, visible
        self.embed = nn.Linear(width, dim)
        self.mask = nn.Parameter(torch.randn(dim) * TOKEN_STD)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, pixels)

    def forward(self, tokens: Tensor, order: Tensor | None = None) -> Tensor:
        """Predict the pixels of hidden patches.

        Args:
            tokens: Tokens (B, P + V, D), those of visible patches last; or (B, D) without an order: one token, which is
                no patch, of which all patches are predicted. It costs the same but for the embedding.
            order: Order (B, N) of all patches, visible ones first.

        Returns:
            Pixels (B, N - V, pixels) in that order.
        """
        visible, table = self.visible, self._positions(tokens)
        if order is None:
            tokens, visible, order = tokens.unsqueeze(1), 0, torch.arange(len(table), device=tokens.device)[None]
        known, positions = self.embed(tokens), table[order]
        prefix = known.shape[1] - visible
        masks = self.mask.to(known).expand(len(known), len(table) - visible, -1)
        patches = torch.cat([known[:, prefix:], masks], dim=1) + positions
        decoded = self.norm(self.blocks(torch.cat([known[:, :prefix], patches], dim=1)))
        return self.pixels(decoded[:, prefix + visible :])

    def _positions(self, like: Tensor) -> Tensor:
        """Return the position embedding (N, dim)."""
        dim = self.embed.out_features
        return build_sincos2d_pos_embed(list(self.grid), dim, interleave_sin_cos=False, device=like.device).to(like)


def visible_patches(total: int, mask_ratio: float) -> int:
    """Return the number of visible patches.

    Raises:
        ValueError: All would be visible, or none.
    """
    visible = int(total * (1 - mask_ratio)) if 0 < mask_ratio < 1 else 0
    if not 0 < visible < total:
        raise ValueError(
            f"mask_ratio must lie between 0 and 1 and leave some of the image's {total} patches, got {mask_ratio}"
        )
    return visible


def normalize(patches: Tensor) -> Tensor:
    """Give every patch (..., pixels) mean 0 and variance 1, as the paper's code does; flat ones become 0."""
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
