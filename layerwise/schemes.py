"""Schemes: how a run is cut into stages (LW-FedSSL, arXiv 2401.11647, section 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate

from layerwise.stage import Stage


class Scheme(ABC):
    """Generates the stages of a run; nothing else in the code asks which scheme it is.

    Args:
        blocks_per_stage: Blocks added in each stage: one number for all, or a list that sums to the depth.
        rounds_per_stage: Rounds of each stage; ``None`` shares the run's rounds equally.
        weight_transfer: Whether a new layer starts from the weights of the layer before it, where the shapes
            agree, instead of its own random initialisation (our reading: on in v3, off in v4 of the paper).
        renew_heads: Whether projection and prediction heads start anew in each stage instead of being carried
            over (the paper is silent; carried over is our reading).
    """

    name: str

    def __init__(
        self,
        blocks_per_stage: int | list[int] = 1,
        rounds_per_stage: list[int] | None = None,
        weight_transfer: bool = False,
        renew_heads: bool = False,
    ) -> None:
        self.blocks_per_stage = blocks_per_stage
        self.rounds_per_stage = rounds_per_stage
        self.weight_transfer = weight_transfer
        self.renew_heads = renew_heads

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """The run's stages.

        Args:
            num_blocks: Blocks of the full encoder.
            rounds: Communication rounds of the whole run.

        Raises:
            ValueError: More stages than blocks, blocks that do not add up to the depth, or rounds that cannot
                be shared equally and are not listed.
        """
        sizes = blocks_of_stages(self.blocks_per_stage, num_blocks)
        durations = rounds_of_stages(self.rounds_per_stage, len(sizes), rounds)
        ends = list(accumulate(sizes))
        return [
            self._stage(index, end - size, end, duration)
            for index, (size, end, duration) in enumerate(zip(sizes, ends, durations, strict=True))
        ]

    @abstractmethod
    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        """Stage ``index``, which adds the blocks from ``start`` to ``end - 1``."""


class LayerWise(Scheme):
    """LW-FedSSL: only the newest blocks are trained and travel, the ones before them are frozen."""

    name = "layer-wise"

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(start, end)), start == 0, rounds)


class Progressive(Scheme):
    """Prog-FedSSL: the model grows, and all present blocks are trained and travel."""

    name = "progressive"

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(end)), True, rounds)


class EndToEnd(Scheme):
    """FedSSL: the whole encoder is trained and travels from the first round on."""

    name = "end-to-end"

    def __init__(self) -> None:
        super().__init__()

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """A single stage with every block."""
        _check_rounds(rounds)
        return [self._stage(0, 0, num_blocks, rounds)]

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(end)), True, rounds)


def reference_scheme() -> Scheme:
    """The scheme with which the costs of all others are compared: end-to-end training."""
    return EndToEnd()


def blocks_of_stages(blocks_per_stage: int | list[int], num_blocks: int) -> list[int]:
    """Number of blocks each stage adds.

    Raises:
        ValueError: The numbers are not positive or do not add up to ``num_blocks``.
    """
    if isinstance(blocks_per_stage, list):
        sizes = blocks_per_stage
        if len(sizes) > num_blocks:
            raise ValueError(f"{len(sizes)} stages are more than the encoder's {num_blocks} blocks")
        if any(size < 1 for size in sizes) or sum(sizes) != num_blocks:
            raise ValueError(
                f"blocks_per_stage {sizes} must be positive and add up to the encoder's {num_blocks} blocks"
            )
        return sizes
    if blocks_per_stage < 1 or num_blocks % blocks_per_stage:
        divisors = [n for n in range(1, num_blocks + 1) if num_blocks % n == 0]
        raise ValueError(
            f"blocks_per_stage {blocks_per_stage} does not divide the encoder's {num_blocks} blocks; "
            f"allowed: {divisors} or a list that sums to {num_blocks}"
        )
    return [blocks_per_stage] * (num_blocks // blocks_per_stage)


def rounds_of_stages(rounds_per_stage: list[int] | None, num_stages: int, rounds: int) -> list[int]:
    """Rounds each stage lasts.

    Raises:
        ValueError: The list has the wrong length or sum, or ``rounds`` does not divide by ``num_stages``.
    """
    _check_rounds(rounds)
    if rounds_per_stage is None:
        if rounds % num_stages:
            raise ValueError(
                f"rounds {rounds} cannot be shared equally by {num_stages} stages; use a multiple of "
                f"{num_stages} or list them in rounds_per_stage"
            )
        return [rounds // num_stages] * num_stages
    if len(rounds_per_stage) != num_stages:
        raise ValueError(f"rounds_per_stage has {len(rounds_per_stage)} entries for {num_stages} stages")
    if any(n < 1 for n in rounds_per_stage) or sum(rounds_per_stage) != rounds:
        raise ValueError(f"rounds_per_stage {rounds_per_stage} must be positive and add up to rounds {rounds}")
    return rounds_per_stage


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
