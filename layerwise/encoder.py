"""Encoders as a stem, a list of blocks and a tail, so that layers can be added one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from layerwise.lora import AdaptedQKV
from layerwise.width import GroupSum


class StagedSpec(ABC):
    """Description of an encoder, enough to build it again anywhere.

    Subclasses are dataclasses, but this base is not, so that the command line lets a ``class_path`` choose one.

    Attributes:
        modality: Kind of input, ``images`` or ``text``.
        input_dtype: Data type of the input.
    """

    modality: ClassVar[str]
    input_dtype: ClassVar[torch.dtype]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the architecture."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch: (C, H, W) of an image, (T,) of a text."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of the features besides their width: () for one vector an input, (T,) for one a character."""
        return ()

    @abstractmethod
    def build(self) -> StagedEncoder:
        """Build the encoder, with random weights drawn from the global generator.

        Raises:
            ValueError: The settings do not agree with each other, or with the pretrained weights.
            FileNotFoundError: The pretrained weights do not exist.
        """


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
        groups: Groups of every block's heads and hidden units, likewise; none without ``width_groups``.

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
        groups: Sequence[nn.ModuleList] = (),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.tail = tail
        self.widths = widths
        self.feature_dim = widths[-1]
        # Entries share the stand-ins: each keeps what it learnt from stage to stage, and leaves when the block that it
        # stands for arrives.
        self.outputs = nn.ModuleList(nn.Sequential(*stand_ins[after:]) for after in range(len(blocks)))
        # Stand-ins already end in the final width, so with them nothing is left to reshape.
        self.reshape = nn.ModuleList(
            nn.Identity() if stand_ins or width == self.feature_dim else nn.Linear(width, self.feature_dim)
            for width in widths
        )
        self.adapters = nn.ModuleList(adapters)
        self.groups = nn.ModuleList(groups)
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
        for name, extras in (("adapter", self.adapters), ("width", self.groups)):
            for i, own in enumerate(extras):
                parts |= {f"{name}.{i}.{number}": part for number, part in enumerate(cast(nn.ModuleList, own))}
        return parts

    def use_adapters(self, number: int) -> None:
        """Activate only the first ``number`` adapters of every block; initially all are active."""
        for layer in self.modules():
            if isinstance(layer, AdaptedQKV):
                layer.active = number

    def use_groups(self, numbers: Sequence[int]) -> None:
        """Activate only these groups of every block's heads and hidden units; none are named for all."""
        for layer in self.modules():
            if isinstance(layer, GroupSum):
                layer.active = tuple(numbers or range(layer.number))

    def group_parts(self, block: int) -> list[str]:
        """Return the names of all groups of a block; none where it is not divided."""
        number = len(cast(nn.ModuleList, self.groups[block])) if self.groups else 0
        return [f"width.{block}.{each}" for each in range(number)]


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
