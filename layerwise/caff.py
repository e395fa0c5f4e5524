"""Every client trains the last layers, as many as its device can (CAFF, arXiv 2411.07826)."""

from __future__ import annotations

from dataclasses import replace

from layerwise.schedule import check_rounds
from layerwise.schemes import Scheme, SpecT
from layerwise.stage import Stage


class LastLayers(Scheme):
    """Of a network of l blocks a client trains the last t and keeps the first l - t frozen (CAFF).

    t differs between clients: each trains the most that its device can. Head and final norm are trained with every t;
    the stem (patch, class and position embedding) is trained only at t = l, because below frozen blocks it would need a
    backward pass through all of them. Both are our reading: what the paper trains besides blocks is not known. A head
    without any block (t = 0) is not offered.

    There is one stage. It is meant for pretrained weights (``EncoderSpec.weights``); without devices all clients train
    everything.

    Args:
        depths: Numbers of blocks that the fleet chooses one of, the first blocks of the encoder; the same for all
            clients. ``None`` leaves the encoder's own depth.

    Raises:
        ValueError: ``depths`` is empty, not ascending, or has numbers below 1.
    """

    name = "last-layers"
    offers_choices = True

    def __init__(self, depths: list[int] | None = None) -> None:
        if depths is not None and (not depths or depths[0] < 1 or sorted(set(depths)) != depths):
            raise ValueError(f"depths must be ascending numbers of at least 1, got {depths}")
        super().__init__()
        self._depths = depths

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """One for each depth.

        Raises:
            ValueError: One is more than the encoder has.
        """
        if self._depths and self._depths[-1] > num_blocks:
            raise ValueError(f"depths {self._depths} reach beyond the encoder's {num_blocks} blocks")
        return [self.stages(depth, rounds) for depth in self._depths or [num_blocks]]

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """A single stage with the first ``num_blocks`` blocks, which is the share of a client without limits."""
        check_rounds(rounds)
        return [self._stage(0, 0, num_blocks, rounds)]

    def choices(self, stage: Stage) -> list[Stage]:
        """The last l, l - 1, ..., 1 blocks trained."""
        blocks = stage.present
        return [
            Stage(stage.index, blocks, blocks[-trained:], trained == len(blocks), stage.rounds)
            for trained in range(len(blocks), 0, -1)
        ]

    def _stage(self, index: int, start: int, end: int, rounds: int) -> Stage:
        return Stage(index, tuple(range(end)), tuple(range(start, end)), True, rounds)


class AllSmall(LastLayers):
    """The deepest network that every device can train end to end, leaving aside those that can train none.

    A baseline in CAFF (arXiv 2411.07826) and the authors' earlier work; there it is named after the width, here it goes
    by depth (our reading). Its stage is end-to-end training of the first ``depth`` blocks.
    """

    name = "all-small"

    def choices(self, stage: Stage) -> list[Stage]:
        """All or nothing."""
        return [stage]


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
