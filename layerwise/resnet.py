"""Split of a timm ResNet into stem, four residual stages and tail."""

from __future__ import annotations

from timm.models.resnet import ResNet
from torch import nn


def split_resnet(model: ResNet) -> tuple[nn.Module, list[nn.Module], nn.Module, list[int]]:
    """Return the stem, the four residual stages, the pooling, and the feature width after each stage.

    LW-FedSSL section 4 counts one residual stage as one layer (S = 4 for ResNet-18).
    """
    stem = nn.Sequential()
    for name in ("conv1", "bn1", "act1", "maxpool"):
        stem.add_module(name, getattr(model, name))
    blocks = [model.layer1, model.layer2, model.layer3, model.layer4]
    tail = nn.Sequential()
    tail.add_module("global_pool", model.global_pool)
    return stem, blocks, tail, [_width(block) for block in blocks]


def use_small_stem(model: ResNet, in_channels: int) -> None:
    """Replace a ResNet's first convolution by a 3x3 one of stride 1 and remove the pooling, in place.

    So 32 x 32 pixels reach the first residual stage as 32 x 32, as in the ResNets of SmartFreeze's authors for CIFAR
    (code of ProFL, arXiv 2404.13349).
    """
    channels = model.feature_info[0]["num_chs"]
    model.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _width(block: nn.Module) -> int:
    """Return the output channels of a residual stage: those of its last convolution."""
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    last = convolutions[-1]
    return last.out_channels
