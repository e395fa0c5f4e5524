"""Sub-models of smaller width, as wide as each client's device can train (HeteroFL, FedRolex)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from layerwise.image_encoder import EncoderSpec
from layerwise.schemes import EndToEnd, SpecT
from layerwise.stage import Stage


class HeteroFL(EndToEnd):
    """HeteroFL: each client trains the first heads and hidden units (Diao et al. 2021, arXiv 2010.01264, section 3).

    The heads and hidden units of a Vision Transformer's blocks are divided into ``groups`` of one size. A client holds
    as many of the first ones as its device can train, receives and sends only these, and multiplies what they add to
    the tokens by all groups over its own (the paper's scaler). A group is averaged over the clients that have it, as
    :class:`fedssl.WeightedMean` does, which is the paper's rule for every coordinate. Without devices all clients train
    the whole encoder.

    Our reading: the width of the tokens is everybody's, and with it stem, norms and heads of the method; so the
    narrowest client saves less than in the paper, where it shrinks too. There are no batch norms to be made static.

    Args:
        groups: Groups of each block; a client's width is a multiple of 1 / groups.

    Raises:
        ValueError: There are fewer than two groups.
    """

    name = "heterofl"
    offers_choices = True

    def __init__(self, groups: int = 2) -> None:
        if groups < 2:
            raise ValueError(f"groups must be at least 2, got {groups}: with one, all clients train the whole encoder")
        super().__init__()
        self._groups = groups

    def adapt(self, spec: SpecT) -> SpecT:
        """Return the same encoder with divided blocks.

        Raises:
            ValueError: It is no image encoder.
        """
        if not isinstance(spec, EncoderSpec):
            raise ValueError(f"scheme {type(self).__name__} divides Vision Transformers of images, not {spec.name}")
        return replace(super().adapt(spec), width_groups=self._groups)

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """Return a single stage with all groups."""
        (whole,) = super().stages(num_blocks, rounds)
        return [replace(whole, groups=tuple(range(self._groups)))]

    def choices(self, stage: Stage) -> list[Stage]:
        """Return the stage in every width, largest first."""
        return [replace(stage, groups=stage.groups[:number]) for number in range(self._groups, 0, -1)]


class FedRolex(HeteroFL):
    """FedRolex: a client's heads and hidden units roll on by a group a round (Alam et al. 2022, arXiv 2212.01548).

    In round t a client with n groups has t, t + 1, ..., t + n - 1, modulo their number (section 3.2): so all groups are
    trained evenly, on all clients' data. A step of one group, and not of one unit, is our reading; all else is as for
    HeteroFL.

    Args:
        groups: Groups of each block; a client's width is a multiple of 1 / groups.
    """

    name = "fedrolex"

    def for_client(self, stage: Stage, rng: np.random.Generator, round_: int = 0) -> Stage:
        """Return the variant with the round's groups in place of the first ones."""
        rolled = sorted((round_ + number) % self._groups for number in stage.groups)
        return replace(stage, groups=tuple(rolled))
