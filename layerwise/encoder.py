"""Encoders as a stem, a list of blocks and a tail, so that layers can be added one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import timm
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import is_model_in_modules
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from layerwise.lora import AdaptedQKV, add_adapters
from layerwise.output_modules import output_modules, resnet_stand_ins, vit_stand_ins
from layerwise.pretrained import load_pretrained
from layerwise.resnet import split_resnet, use_small_stem
from layerwise.spec import StagedSpec
from layerwise.vit import split_vit

VIT_MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid")
"""timm modules whose models take their image size at construction."""


ALIKE = 0.6
"""Similarity of two names from which one is suggested in place of the other."""


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

    def __post_init__(self) -> None:
        if not timm.is_model(self.name):
            raise ValueError(
                f"timm knows no model {self.name!r}; nearest names: {', '.join(_near(self.name)) or 'none'}"
            )
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, got {self.in_channels}")
        if self.position not in ("learned", "sincos"):
            raise ValueError(f"position must be 'learned' or 'sincos', got {self.position!r}")
        if self.output not in ("linear", "convolution"):
            raise ValueError(f"output must be 'linear' or 'convolution', got {self.output!r}")
        if self.stem not in ("timm", "small"):
            raise ValueError(f"stem must be 'timm' or 'small', got {self.stem!r}")
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
        if type(model) is VisionTransformer:
            return _stage_vit(model, self)
        if isinstance(model, ResNet):
            return _stage_resnet(model, self)
        raise ValueError(f"{self.name!r} is a {type(model).__name__}; a timm VisionTransformer or ResNet is needed")


class StagedEncoder(nn.Module):
    """Encoder whose blocks can be present or absent.

    The parts are ``stem`` (the embedding), ``blocks`` and ``tail`` (final norm and pooling), and two temporary ones
    with one entry a block, of which a stage uses the entry of its newest block: ``outputs`` in front of the tail
    (stand-ins for the missing blocks, SmartFreeze; entries share them) and ``reshape`` behind it (the linear layer that
    maps a narrower intermediate output to the final feature width, as LW-FedSSL section 4 does for ResNet-18). Either
    is an identity where nothing is missing or the width already agrees.

    Args:
        spec: Description that the encoder was built from.
        stem: Maps the input to the first block's input.
        blocks: Layers that a scheme adds one by one.
        tail: Maps any block's output to features (B, D_i), or (B, T, D_i) of a text.
        widths: D_i, the feature width after each block.
        stand_ins: Stand-ins for every block but the first; none for ``output="linear"``.
        adapters: Low-rank adapters of every block, each adapter a part of its own; none without ``ranks``.

    Attributes:
        depth: Number of leading blocks that ``forward`` runs; initially all.
    """

    def __init__(
        self,
        spec: StagedSpec,
        stem: nn.Module,
        blocks: list[nn.Module],
        tail: nn.Module,
        widths: list[int],
        stand_ins: Sequence[nn.Module] = (),
        adapters: Sequence[nn.ModuleList] = (),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.tail = tail
        self.widths = widths
        self.feature_dim = widths[-1]
        self.outputs = output_modules(stand_ins, len(blocks))
        # Stand-ins already end in the final width, so with them nothing is left to reshape.
        self.reshape = nn.ModuleList(
            nn.Identity() if stand_ins or width == self.feature_dim else nn.Linear(width, self.feature_dim)
            for width in widths
        )
        self.adapters = nn.ModuleList(adapters)
        self.depth = len(blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features after the first ``depth`` blocks, without the temporary modules.

        Args:
            inputs: Normalised images (B, C, H, W), or indices of characters (B, T).

        Returns:
            Features (B, D) of images, (B, T, D) of texts, with D the width after block ``depth``.
        """
        hidden = self.stem(inputs)
        for block in self.blocks[: self.depth]:
            hidden = block(hidden)
        return self.tail(hidden)

    def parts(self) -> dict[str, nn.Module]:
        """Return every separately trained and transferred part by name, in forward order."""
        parts: dict[str, nn.Module] = {"stem": self.stem}
        parts |= {f"block.{i}": block for i, block in enumerate(self.blocks)}
        parts |= {f"output.{i}": output for i, output in enumerate(self.outputs)}
        parts["tail"] = self.tail
        parts |= {f"reshape.{i}": layer for i, layer in enumerate(self.reshape)}
        for i, adapters in enumerate(self.adapters):
            parts |= {f"adapter.{i}.{number}": adapter for number, adapter in enumerate(cast(nn.ModuleList, adapters))}
        return parts

    def use_adapters(self, number: int) -> None:
        """Activate only the first ``number`` adapters of every block; initially all are active."""
        for layer in self.modules():
            if isinstance(layer, AdaptedQKV):
                layer.active = number


def build_encoder(spec: StagedSpec, seed: int) -> StagedEncoder:
    """Build an encoder, freshly initialised or pretrained; the same spec and seed give the same weights.

    Raises:
        FileNotFoundError: ``spec.weights`` names no file.
        ValueError: The spec cannot be built, or pretrained weights are of another network.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs; those are not forked and would stay seeded.
        torch.default_generator.manual_seed(seed)
        return spec.build()


def timm_arguments(spec: EncoderSpec) -> dict[str, Any]:
    """Return the keyword arguments with which ``timm.create_model`` builds this encoder."""
    arguments = {"in_chans": spec.in_channels, "num_classes": 0, **spec.options}
    if is_model_in_modules(spec.name, VIT_MODULES):
        arguments["img_size"] = spec.image_size
    return arguments


def _create_timm_model(spec: EncoderSpec) -> nn.Module:
    try:
        return timm.create_model(spec.name, pretrained=False, **timm_arguments(spec))
    # timm hands options on to the constructors of its models, which raise errors of any type.
    except Exception as error:
        raise ValueError(f"timm refuses to build {spec.name!r} with {timm_arguments(spec)}: {error}") from error


def _stage_vit(model: VisionTransformer, spec: EncoderSpec) -> StagedEncoder:
    if spec.stem == "small":
        raise ValueError(f"stem 'small' needs a ResNet, {spec.name!r} embeds patches")
    _check_patches(model, spec.image_size)
    if spec.position == "sincos":
        _set_sincos(model)
    if spec.weights:
        load_pretrained(model, Path(spec.weights))
    stem, blocks, tail, widths = split_vit(model)
    stand_ins = vit_stand_ins(model, len(blocks)) if spec.output == "convolution" else []
    return StagedEncoder(spec, stem, blocks, tail, widths, stand_ins, add_adapters(blocks, spec.ranks))


def _stage_resnet(model: ResNet, spec: EncoderSpec) -> StagedEncoder:
    if spec.position == "sincos":
        raise ValueError(f"position 'sincos' needs a ViT, {spec.name!r} has no position embedding")
    if spec.ranks:
        raise ValueError(f"LoRA needs a ViT, {spec.name!r} has no attention")
    if spec.stem == "small":
        use_small_stem(model, spec.in_channels)
    if spec.weights:
        load_pretrained(model, Path(spec.weights))
    stem, blocks, tail, widths = split_resnet(model)
    stand_ins = resnet_stand_ins(blocks, widths) if spec.output == "convolution" else []
    return StagedEncoder(spec, stem, blocks, tail, widths, stand_ins)


def _check_patches(model: VisionTransformer, image_size: int) -> None:
    for patch in model.patch_embed.patch_size:
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not a multiple of the patch size {patch}")


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
