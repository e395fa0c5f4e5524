"""Light stand-ins for the blocks that a stage does not have yet: SmartFreeze's output modules (arXiv 2408.09101)."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

TOKEN_STD = 0.02
"""Initial standard deviation of a ViT's linear layers, as in timm."""


class TokenStandIn(nn.Module):
    """Stand-in for a block of a Vision Transformer: tokens (B, T, D) to tokens (B, T, D).

    Like the block it has two residual steps, one across tokens and one across channels: a depthwise 3x3 convolution
    over the grid of patches, and a linear layer. What comes before the patch tokens (class token, registers) gets the
    mean of the convolution, as it would otherwise never see a patch. Of a ViT-Tiny block's 444,864 parameters it has
    38,784 (8.7 %). SmartFreeze covers convolutional models only: all of this is our reading.

    Args:
        width: D, the width of a token.
        grid: Rows and columns of patches; they are the last tokens.
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.trunc_normal_(self.linear.weight, std=TOKEN_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        B, T, D = tokens.shape
        rows, columns = self.grid
        prefix = T - rows * columns
        image = tokens[:, prefix:].transpose(1, 2).reshape(B, D, rows, columns)
        mixed = self.conv(image).flatten(2).transpose(1, 2)
        tokens = tokens + torch.cat([mixed.mean(1, keepdim=True).expand(-1, prefix, -1), mixed], dim=1)
        return tokens + self.linear(tokens)


def vit_stand_ins(model: VisionTransformer) -> list[nn.Module]:
    """Return one ``TokenStandIn`` for every block but the first.

    Raises:
        ValueError: Patches are dropped in training, so that they form no grid.
    """
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError("output 'convolution' needs all patches: patch_drop_rate must be 0")
    rows, columns = model.patch_embed.grid_size
    return [TokenStandIn(model.embed_dim, (rows, columns)) for _ in model.blocks[1:]]


def resnet_stand_ins(stages: list[Any], widths: list[int]) -> list[nn.Module]:
    """Return one 3x3 convolution for every residual stage but the first, with that stage's stride and channels.

    There is no bias, and neither norm nor activation in between; the weights are Kaiming-normal by fan-out. The paper
    says that output modules are convolutions which imitate the missing layers; these are those of the same authors'
    code for ProFL (arXiv 2404.13349).
    """
    stand_ins: list[nn.Module] = []
    for stage, width_in, width in zip(stages[1:], widths, widths[1:], strict=False):
        conv = nn.Conv2d(width_in, width, 3, stride=stage[0].stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        stand_ins.append(conv)
    return stand_ins
