"""Training of the last layers, as many as each client's device can (CAFF, arXiv 2411.07826), and the LoRA baselines."""

from __future__ import annotations

from dataclasses import replace

from layerwise.schemes import EndToEnd, SpecT
from layerwise.stage import Stage


class LastLayers(EndToEnd):
    """CAFF: each client trains the last t of the l blocks and keeps the first l - t frozen.

    Clients differ in t: each trains as many blocks as its device can. Head and final norm are trained with every t; the
    stem (patch, class and position embedding) is trained only at t = l, because below frozen blocks it would need a
    backward pass through all of them. Both are our reading: what the paper trains besides blocks is not known. A head
    without any block (t = 0) is not offered.

    The run has one stage. The scheme is meant for pretrained weights (``EncoderSpec.weights``). Without devices all
    clients train everything.

    Args:
        depths: Candidate encoder depths in blocks, ascending. The fleet picks one for all clients and keeps that many
            first blocks. ``None`` leaves the encoder's own depth.

    Raises:
        ValueError: ``depths`` is empty, not ascending, or has numbers below 1.
    """

    name = "last-layers"
    offers_choices = True

    def __init__(self, depths: list[int] | None = None) -> None:
        if depths is not None:
            _check_ascending("depths", depths)
        super().__init__()
        self._depths = depths

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """Return one list of stages for each depth.

        Raises:
            ValueError: A depth exceeds the encoder's blocks.
        """
        if self._depths and self._depths[-1] > num_blocks:
            raise ValueError(f"depths {self._depths} reach beyond the encoder's {num_blocks} blocks")
        return [self.stages(depth, rounds) for depth in self._depths or [num_blocks]]

    def choices(self, stage: Stage) -> list[Stage]:
        """Return the stage with the last l, l - 1, ..., 1 blocks trained."""
        blocks = stage.present
        return [
            Stage(stage.index, blocks, blocks[-trained:], trained == len(blocks), stage.rounds)
            for trained in range(len(blocks), 0, -1)
        ]


class AllSmall(LastLayers):
    """The deepest encoder that every device can train end to end, ignoring devices that can train none.

    Baseline of CAFF (arXiv 2411.07826) and the authors' earlier work; they name it after the width, here it goes by
    depth (our reading). Its only stage is end-to-end training of the first ``depth`` blocks.
    """

    name = "all-small"

    def choices(self, stage: Stage) -> list[Stage]:
        """Return the whole stage: clients train all of it or nothing."""
        return [stage]


class LoRA(EndToEnd):
    """LoRA with one rank for all clients: every block has adapters, all layers but the final norm are frozen.

    The rank is the largest that every device can train, ignoring devices that can train none. Without devices it is the
    largest of ``ranks``. LoRA: Hu et al. 2021, arXiv 2106.09685.

    Args:
        ranks: Candidate ranks, ascending.

    Raises:
        ValueError: ``ranks`` is empty, not ascending, or has numbers below 1.
    """

    name = "lora"

    def __init__(self, ranks: list[int]) -> None:
        _check_ascending("ranks", ranks)
        super().__init__()
        self._ranks = ranks

    def adapt(self, spec: SpecT) -> SpecT:
        """Return the same encoder with adapters."""
        return replace(super().adapt(spec), ranks=self._ranks)

    def stages(self, num_blocks: int, rounds: int) -> list[Stage]:
        """Return a single stage with all ranks."""
        return self.variants(num_blocks, rounds)[-1]

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """Return one list of stages for each rank."""
        (whole,) = super().stages(num_blocks, rounds)
        # Beside the adapters only the final norm and the heads are trained.
        return [[replace(whole, trains_stem=False, adapters=number)] for number in range(1, len(self._ranks) + 1)]


class HeterogeneousLoRA(LoRA):
    """HetLoRA: each client trains adapters of the largest rank that its device can (Cho et al., arXiv 2401.06432).

    The server keeps the largest rank; a client receives and trains its first ranks. Aggregate with
    ``fedssl.NormWeightedMean``. Rank pruning during local training is left out, because its constants are not known.
    """

    name = "heterogeneous-lora"
    offers_choices = True

    def variants(self, num_blocks: int, rounds: int) -> list[list[Stage]]:
        """Return a single list of stages, with the largest rank."""
        return super().variants(num_blocks, rounds)[-1:]

    def choices(self, stage: Stage) -> list[Stage]:
        """Return the stage with every rank, largest first."""
        return [replace(stage, adapters=number) for number in range(stage.adapters, 0, -1)]


def _check_ascending(name: str, numbers: list[int]) -> None:
    if not numbers or numbers[0] < 1 or sorted(set(numbers)) != numbers:
        raise ValueError(f"{name} must be ascending numbers of at least 1, got {numbers}")
