"""Schemes that train low-rank adapters in place of layers."""

from __future__ import annotations

from dataclasses import replace

from layerwise.schedule import check_rounds
from layerwise.schemes import Scheme, SpecT
from layerwise.stage import Stage


class LoRA(Scheme):
    """Every layer is frozen but the final norm, and every block has adapters of one rank, the same for all clients.

    With devices it is the largest of the ranks that every one of them can train, leaving aside those that can train
    none; without devices the largest. LoRA: Hu et al. 2021, arXiv 2106.09685.

    Args:
        ranks: To choose from.

    Raises:
        ValueError: ``ranks`` is empty, not ascending, or has numbers below 1.
    """

    name = "lora"

    def __init__(self, ranks: list[int]) -> None:
        if not ranks or ranks[0] < 1 or sorted(set(ranks)) != ranks:
            raise ValueError(f"ranks must be ascending numbers of at least 1, got {ranks}")
        super().__init__()
        self._ranks = ranks

    def adapt(self, spec: SpecT) -> SpecT:
        """The same encoder with adapters."""
        return replace(super().adapt(spec), ranks=self._ranks)

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """A single stage with all ranks."""
        return self.variants(num_blocks, rounds)[-1]

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """One for each rank."""
        check_rounds(rounds)
        whole = self._stage(0, 0, num_blocks, rounds)
        return [[replace(whole, adapters=number)] for number in range(1, len(self._ranks) + 1)]

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(start, end)), False, rounds, len(self._ranks))


class HeterogeneousLoRA(LoRA):
    """Every client trains adapters of the largest rank that its device can (HetLoRA, Cho et al., arXiv 2401.06432).

    The server keeps the largest rank; a client gets and trains the first ranks of it. :class:`fedssl.NormWeightedMean`
    is its aggregation. Pruning of ranks during local training is left out: its constants are not known.
    """

    name = "heterogeneous-lora"
    offers_choices = True

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """A single one, with the largest rank."""
        return super().variants(num_blocks, rounds)[-1:]

    def choices(self, stage: Stage) -> list[Stage]:
        """The largest rank first."""
        return [replace(stage, adapters=number) for number in range(stage.adapters, 0, -1)]
