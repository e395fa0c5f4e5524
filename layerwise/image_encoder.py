"""Image encoders of timm, cut into stem, blocks and tail: Vision Transformers and ResNets."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, global_pool_nlc
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import is_model_in_modules
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from layerwise.encoder import StagedEncoder, StagedSpec
from layerwise.lora import add_adapters
from layerwise.output_modules import resnet_stand_ins, vit_stand_ins
from layerwise.pretrained import load_pretrained
from layerwise.width import add_groups

VIT_MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid")
"""timm modules whose models take their image size at construction."""

POOLS = ("token", "avg", "avgmax", "max")
ALIKE = 0.6
"""Similarity of two names from which one is suggested in place of the other."""

CHOICES = {"position": ("learned", "sincos"), "output": ("linear", "convolution"), "stem": ("timm", "small")}


@dataclass(frozen=True)
class EncoderSpec(StagedSpec):
    """Image encoder of timm: a Vision Transformer or a ResNet.

    Args:
        name: A timm Vision Transformer or ResNet, for example ``vit_tiny_patch16_224`` or ``resnet18``.
        image_size: Side of the square input in pixels.
        in_channels: Colour channels of the input, 1 or 3.
        position: Initial position embedding of a ViT: timm's ``learned`` initialisation, or 2-D ``sincos`` values. It
            is trained either way (LW-FedSSL section 3 trains it, MoCo v3 does not).
        options: Further keyword arguments of ``timm.create_model``, for example ``{"depth": 6}``.
        output: Auxiliary layers between the newest block and the loss while later blocks are missing. ``linear``: a
            linear layer after pooling, where a ResNet's stage is narrower than the last one (LW-FedSSL section 4).
            ``convolution``: a light stand-in for every missing block, in front of the tail (SmartFreeze).
        stem: Input layers. ``timm`` keeps the model's own. ``small`` suits ResNets on small images: a 3x3 convolution
            of stride 1 replaces the 7x7 one of stride 2, and pooling is left out (the ResNets of SmartFreeze's
            authors).
        weights: File or folder of pretrained weights, such as the ``encoder`` folder of a run; ``None`` initialises at
            random. They replace the position embedding too.
        ranks: Ranks of the low-rank adapters in a ViT's blocks, ascending. Schemes that train adapters set them.
        width_groups: Groups of heads and hidden units in a ViT's blocks. Schemes of clients with narrower encoders set
            them.
        channels_last: Lay out the weights of convolutions with the channels last, so that their outputs are too. A
            ResNet's step is faster on most processors; results differ by rounding.
    """

    modality: ClassVar[str] = "images"
    input_dtype: ClassVar[torch.dtype] = torch.float32

    name: str = "vit_tiny_patch16_224"
    image_size: int = 32
    in_channels: int = 3
    position: Literal["learned", "sincos"] = "learned"
    options: dict[str, Any] = field(default_factory=dict)
    output: Literal["linear", "convolution"] = "linear"
    stem: Literal["timm", "small"] = "timm"
    weights: str | None = None
    ranks: list[int] = field(default_factory=list)
    channels_last: bool = False
    width_groups: int = 1

    def __post_init__(self) -> None:
        if not timm.is_model(self.name):
            near = ", ".join(_near(self.name)) or "none"
            raise ValueError(f"timm knows no model {self.name!r}; nearest names: {near}")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, got {self.in_channels}")
        for setting, (first, second) in CHOICES.items():
            if getattr(self, setting) not in (first, second):
                raise ValueError(f"{setting} must be {first!r} or {second!r}, got {getattr(self, setting)!r}")
        taken = {"img_size", "in_chans", "num_classes"} & self.options.keys()
        if taken:
            raise ValueError(f"options must not hold {', '.join(taken)}: set image_size and in_channels")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        return self.in_channels, self.image_size, self.image_size

    def build(self) -> StagedEncoder:
        """Build the timm model and split it into stem, blocks and tail.

        Raises:
            FileNotFoundError: ``weights`` names no file.
            ValueError: The model is neither a ViT nor a ResNet, an option is unknown to it, or the image size does not
                fit its patches; or pretrained weights are of another network.
        """
        model = _create_timm_model(self)
        # Subclasses of VisionTransformer (distilled, with relative positions) compute something else from its parts.
        if type(model) is VisionTransformer:
            encoder = _stage_vit(model, self)
        elif isinstance(model, ResNet):
            encoder = _stage_resnet(model, self)
        else:
            raise ValueError(f"{self.name!r} is a {type(model).__name__}; a timm VisionTransformer or ResNet is needed")
        return encoder.to(memory_format=torch.channels_last) if self.channels_last else encoder


class ViTStem(nn.Module):
    """Stem with patch embedding, class token and position embedding: images (B, C, H, W) to tokens (B, T, D).

    The stem keeps timm's own module, emptied of blocks, norms and head, so that every embedding variant of timm (class
    token, register tokens, no token, dropout) works unchanged. It also takes some patches of each image
    (B, V, 1 + C * rows * columns), the place of each in front of its pixels, and gives the tokens that they have among
    all (masked autoencoders).

    Attributes:
        grid: Rows and columns of patches; ``None`` if the stem takes no patches.
        patch: Rows and columns of pixels in a patch.
        channels: Colour channels.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        embed = model.patch_embed
        # A hybrid's embedding is a convolutional network, which needs whole images.
        takes_patches = type(embed) is PatchEmbed
        self.grid: tuple[int, int] | None = embed.grid_size if takes_patches else None
        self.patch: tuple[int, int] = embed.patch_size
        self.channels = embed.proj.in_channels if takes_patches else 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the tokens of images, or of some of their patches, those of the class and registers first."""
        model = self.model
        if inputs.ndim == 4:
            return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(inputs))))
        return model.norm_pre(self._some(inputs[..., :1].long(), inputs[..., 1:]))

    def _some(self, places: Tensor, pixels: Tensor) -> Tensor:
        """Embed patches (B, V, pixels) at places (B, V, 1)."""
        model, embed = self.model, self.model.patch_embed
        tokens = embed.norm(F.linear(pixels, embed.proj.weight.flatten(1), embed.proj.bias))
        assert self.grid is not None
        count, (rows, columns), width = len(tokens), self.grid, tokens.shape[2]
        index = places.expand_as(tokens)
        # Among all patches, so that timm adds whatever it adds; the others are zeros, and left out afterwards.
        everything = tokens.new_zeros(count, rows * columns, width).scatter(1, index, tokens)
        if model.dynamic_img_size:
            everything = everything.view(count, rows, columns, width)
        embedded = model._pos_embed(everything)
        first = embedded.shape[1] - rows * columns
        return torch.cat([embedded[:, :first], embedded[:, first:].gather(1, index)], dim=1)


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

    def dense(self) -> nn.Sequential:
        """Return the final norm of every token, (B, T, D) to (B, T, D), with the same layers."""
        return nn.Sequential(self.norm, self.fc_norm)


def timm_arguments(spec: EncoderSpec) -> dict[str, Any]:
    """Return the keyword arguments with which ``timm.create_model`` builds this encoder."""
    arguments = {"in_chans": spec.in_channels, "num_classes": 0, **spec.options}
    if is_model_in_modules(spec.name, VIT_MODULES):
        arguments["img_size"] = spec.image_size
    return arguments


def use_small_stem(model: ResNet, in_channels: int) -> None:
    """Replace a ResNet's first convolution by a 3x3 one of stride 1 and remove the pooling, in place.

    So 32 x 32 pixels reach the first residual stage as 32 x 32, as in the ResNets of SmartFreeze's authors for CIFAR
    (code of ProFL, arXiv 2404.13349).
    """
    channels = model.feature_info[0]["num_chs"]
    model.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _create_timm_model(spec: EncoderSpec) -> nn.Module:
    try:
        return timm.create_model(spec.name, pretrained=False, **timm_arguments(spec))
    # timm hands options on to the constructors of its models, which raise errors of any type.
    except Exception as error:
        raise ValueError(f"timm refuses to build {spec.name!r} with {timm_arguments(spec)}: {error}") from error


def _stage_vit(model: VisionTransformer, spec: EncoderSpec) -> StagedEncoder:
    _check_vit(model, spec)
    if spec.position == "sincos":
        _set_sincos(model)
    if spec.weights:
        load_pretrained(model, Path(spec.weights))
    stand_ins = vit_stand_ins(model) if spec.output == "convolution" else []
    blocks, tail = list(model.blocks), ViTTail(model)
    # The stem keeps the timm module: emptied, so that no block or norm is registered, and counted, twice.
    model.blocks = nn.Sequential()
    model.norm, model.fc_norm, model.head = nn.Identity(), nn.Identity(), nn.Identity()
    widths, adapters = [model.embed_dim] * len(blocks), add_adapters(blocks, spec.ranks)
    groups = add_groups(blocks, spec.width_groups)
    return StagedEncoder(spec, ViTStem(model), blocks, tail, widths, stand_ins, adapters, groups)


def _check_vit(model: VisionTransformer, spec: EncoderSpec) -> None:
    if spec.stem == "small":
        raise ValueError(f"stem 'small' needs a ResNet, {spec.name!r} embeds patches")
    for patch in model.patch_embed.patch_size:
        if spec.image_size % patch:
            raise ValueError(f"image_size {spec.image_size} is not a multiple of the patch size {patch}")
    if model.global_pool not in POOLS:
        raise ValueError(f"global_pool {model.global_pool!r} is not supported; allowed: {', '.join(POOLS)}")
    if not len(model.blocks):
        raise ValueError("the encoder has no blocks: depth must be at least 1")


def _stage_resnet(model: ResNet, spec: EncoderSpec) -> StagedEncoder:
    """Split a ResNet; each of its four residual stages counts as one layer (LW-FedSSL section 4)."""
    if spec.position == "sincos":
        raise ValueError(f"position 'sincos' needs a ViT, {spec.name!r} has no position embedding")
    if spec.ranks:
        raise ValueError(f"LoRA needs a ViT, {spec.name!r} has no attention")
    if spec.width_groups > 1:
        raise ValueError(f"width groups need a ViT, the channels of {spec.name!r} cannot be divided")
    if spec.stem == "small":
        use_small_stem(model, spec.in_channels)
    if spec.weights:
        load_pretrained(model, Path(spec.weights))
    # Named parts keep the names of timm's tensors, by which weights are exported.
    stem = nn.Sequential(OrderedDict((name, getattr(model, name)) for name in ("conv1", "bn1", "act1", "maxpool")))
    tail = nn.Sequential(OrderedDict(global_pool=model.global_pool))
    blocks = [model.layer1, model.layer2, model.layer3, model.layer4]
    # A residual stage is as wide as its last convolution, be it of a residual branch or of a shortcut.
    widths = [[m for m in block.modules() if isinstance(m, nn.Conv2d)][-1].out_channels for block in blocks]
    stand_ins = resnet_stand_ins(blocks, widths) if spec.output == "convolution" else []
    return StagedEncoder(spec, stem, blocks, tail, widths, stand_ins)


def _set_sincos(model: VisionTransformer) -> None:
    if model.pos_embed is None:
        raise ValueError("position 'sincos' needs a ViT with an absolute position embedding")
    width = model.embed_dim
    if width % 4:
        raise ValueError(f"position 'sincos' needs an embed_dim that is a multiple of 4, got {width}")
    grid = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), dim=width, interleave_sin_cos=False)
    with torch.no_grad():
        model.pos_embed.zero_()
        # Prefix tokens (class token, registers) come first and have no place in the grid: they stay at zero.
        model.pos_embed[0, -grid.shape[0] :] = grid


def _near(name: str) -> list[str]:
    """Return up to three timm models with a similar prefix; people forget the patch and image size at the end."""
    alike = {each: SequenceMatcher(None, name, each[: len(name)]).ratio() for each in timm.list_models()}
    near = [each for each, ratio in alike.items() if ratio > ALIKE]
    return sorted(near, key=lambda each: (-alike[each], len(each)))[:3]
