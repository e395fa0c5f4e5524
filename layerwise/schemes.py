"""Schemes that cut a run into stages (LW-FedSSL, arXiv 2401.11647, section 3; ProgFed, arXiv 2110.05323)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate
from typing import TypeVar

import numpy as np

from layerwise.causal_transformer import CausalTransformerSpec
from layerwise.encoder import StagedEncoder
from layerwise.image_encoder import EncoderSpec
from layerwise.schedule import blocks_of_stages, check_rounds, rounds_of_stages
from layerwise.stage import Stage, check_alike, keep_layers

SpecT = TypeVar("SpecT", bound=EncoderSpec | CausalTransformerSpec)


class Scheme(ABC):
    """Base of the training schemes: generates the stages of a run. No other code asks which scheme it is.

    Args:
        blocks_per_stage: Blocks added in each stage: one number for all, or a list that sums to the depth.
        rounds_per_stage: Rounds of each stage; ``None`` shares the run's rounds equally.
        weight_transfer: Initialise a new layer from the weights of the layer before it, where the shapes agree, instead
            of at random (our reading: on in v3, off in v4 of the paper).
        renew_heads: Re-initialise projection and prediction heads in each stage instead of carrying them over, as the
            paper's algorithms 1 and 3 do.
        layer_budget: Most blocks that a client holds; a draw for each client and round leaves out the others (depth
            dropout, Guo et al., arXiv 2309.05213). ``None`` leaves out none.

    Attributes:
        offers_choices: True if clients train different parts of a stage, depending on their devices.
    """

    name: str
    offers_choices = False

    def __init__(
        self,
        blocks_per_stage: int | list[int] = 1,
        rounds_per_stage: list[int] | None = None,
        weight_transfer: bool = False,
        renew_heads: bool = False,
        layer_budget: int | None = None,
    ) -> None:
        self.blocks_per_stage = blocks_per_stage
        self.rounds_per_stage = rounds_per_stage
        self.weight_transfer = weight_transfer
        self.renew_heads = renew_heads
        self.layer_budget = layer_budget

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """Return the run's stages.

        Args:
            num_blocks: Number of blocks of the full encoder.
            rounds: Communication rounds of the whole run.

        Raises:
            ValueError: More stages than blocks, blocks that do not add up to the depth, rounds that cannot be shared
                equally and are not listed, or a layer budget below the blocks that a client cannot do without.
        """
        sizes = blocks_of_stages(self.blocks_per_stage, num_blocks)
        stages: list[Stage] = []
        for size, end, duration in zip(sizes, accumulate(sizes), self._durations(len(sizes), rounds), strict=True):
            stages += self._warm_up(len(stages), end - size, end)
            stages.append(self._stage(len(stages), end - size, end, duration))
        self._check_budget(stages)
        return stages

    def check(self, encoder: StagedEncoder) -> None:
        """Refuse an encoder that the settings do not fit.

        Raises:
            ValueError: A layer budget is set, and the encoder's blocks differ in shape.
        """
        if self.layer_budget is not None:
            check_alike(encoder)

    def adapt(self, spec: SpecT) -> SpecT:
        """Return the encoder that the scheme needs: by default the configured one.

        Raises:
            ValueError: The configured encoder has adapters or groups, which only schemes set.
        """
        if spec.ranks:
            raise ValueError(f"encoder.ranks {spec.ranks}: leave them out, the scheme LoRA sets them")
        if isinstance(spec, EncoderSpec) and spec.width_groups != 1:
            raise ValueError(f"encoder.width_groups {spec.width_groups}: leave them out, the scheme HeteroFL sets them")
        return spec

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """Return alternative stage lists, smallest first; the fleet picks one. Most schemes have one."""
        return [self.stages(num_blocks, rounds)]

    def choices(self, stage: Stage) -> list[Stage]:
        """Return the variants of a stage that a client may train, largest first; its device decides. By default one."""
        return [stage]

    def for_client(self, stage: Stage, rng: np.random.Generator, round_: int = 0) -> Stage:
        """Return the part of its variant that one client holds in a round: all of it without a layer budget.

        All draws for a stage have equally many blocks, so that they cost the same.

        Args:
            stage: Variant of the client.
            rng: Draws the blocks that a layer budget leaves out.
            round_: Communication round, from 0.
        """
        return stage if self.layer_budget is None else keep_layers(stage, self.layer_budget, rng)

    @abstractmethod
    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        """Return stage ``index``, which adds the blocks from ``start`` to ``end - 1``."""

    def _warm_up(self, index: int, start: int, end: int) -> list[Stage]:
        """Return the warm-up stages before the stage that adds these blocks; by default none."""
        return []

    def _durations(self, num_stages: int, rounds: int) -> list[int]:
        return rounds_of_stages(self.rounds_per_stage, num_stages, rounds)

    def _indispensable(self, stage: Stage) -> int:
        """Return the number of blocks that every client must hold: the first and the trained ones."""
        return len(stage.trained) + bool(stage.frozen)

    def _check_budget(self, stages: list[Stage]) -> None:
        least = max(self._indispensable(stage) for stage in stages)
        if self.layer_budget is not None and self.layer_budget < least:
            raise ValueError(
                f"layer_budget {self.layer_budget} must be at least {least}: the first block and the newest ones are "
                "always kept"
            )


class LayerWise(Scheme):
    """LW-FedSSL: only the newest blocks are trained and exchanged, the blocks before them are frozen."""

    name = "layer-wise"

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(start, end)), start == 0, rounds)


class Progressive(Scheme):
    """Prog-FedSSL and ProgFed: the model grows, and all present blocks are trained and exchanged.

    Args:
        blocks_per_stage: Blocks added in each stage: one number for all, or a list that sums to the depth.
        rounds_per_stage: Rounds of each stage without its warm-up rounds; ``None`` shares the run's rounds.
        weight_transfer: As for every scheme.
        renew_heads: As for every scheme. ProgFed has a new head for every stage.
        layer_budget: As for every scheme. The draw is among trained blocks here (the "DD" rows of LW-FedSSL).
        warm_up_rounds: Rounds after each growth in which only the new blocks and the heads are trained (ProgFed). They
            form a stage of their own at the full learning rate, and count among the run's rounds (our deviation: the
            paper's code adds them).
        long_last_stage: ProgFed's schedule: with T rounds besides warm-up and S stages, T / 2S rounds for every stage
            but the last and T (S + 1) / 2S for the last, instead of T / S for each.

    Raises:
        ValueError: ``warm_up_rounds`` is negative, or ``long_last_stage`` comes with ``rounds_per_stage``.
    """

    name = "progressive"

    def __init__(
        self,
        blocks_per_stage: int | list[int] = 1,
        rounds_per_stage: list[int] | None = None,
        weight_transfer: bool = False,
        renew_heads: bool = False,
        layer_budget: int | None = None,
        warm_up_rounds: int = 0,
        long_last_stage: bool = False,
    ) -> None:
        if warm_up_rounds < 0:
            raise ValueError(f"warm_up_rounds must be at least 0, got {warm_up_rounds}")
        if long_last_stage and rounds_per_stage is not None:
            raise ValueError(f"long_last_stage shares the rounds: it excludes rounds_per_stage {rounds_per_stage}")
        super().__init__(blocks_per_stage, rounds_per_stage, weight_transfer, renew_heads, layer_budget)
        self.warm_up_rounds = warm_up_rounds
        self.long_last_stage = long_last_stage

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(end)), True, rounds)

    def _warm_up(self, index: int, start: int, end: int) -> list[Stage]:
        if start == 0 or self.warm_up_rounds == 0:
            return []
        # Older blocks stay frozen, so that the gradients of untrained new blocks do not disturb them.
        return [Stage(index, tuple(range(end)), tuple(range(start, end)), False, self.warm_up_rounds, full_lr=True)]

    def _durations(self, num_stages: int, rounds: int) -> list[int]:
        warm_up = self.warm_up_rounds * (num_stages - 1)
        return rounds_of_stages(self.rounds_per_stage, num_stages, rounds, warm_up, self.long_last_stage)

    def _indispensable(self, stage: Stage) -> int:
        """Return the first and the trained blocks in warm-up rounds, otherwise the first and the last."""
        return super()._indispensable(stage) if stage.frozen else min(2, len(stage.present))


class EndToEnd(Scheme):
    """FedSSL: the whole encoder is trained and exchanged from the first round on."""

    name = "end-to-end"

    def __init__(self) -> None:
        super().__init__()

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """Return a single stage with every block."""
        check_rounds(rounds)
        return [self._stage(0, 0, num_blocks, rounds)]

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(end)), True, rounds)


def reference_scheme() -> Scheme:
    """Return the reference scheme for relative costs: end-to-end training."""
    return EndToEnd()


def scheme_choices(num_blocks: int) -> list[Scheme]:
    """Return every scheme with equally many blocks in each stage: end-to-end, then those with several stages.

    Args:
        num_blocks: Number of blocks of the full encoder.
    """
    # All blocks in one stage would be end-to-end training a second time.
    divisors = [size for size in range(1, num_blocks) if num_blocks % size == 0]
    several = [kind(size) for kind in (Progressive, LayerWise) for size in divisors]
    return [EndToEnd(), *several]
