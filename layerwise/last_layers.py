"""Every client trains the last layers, as many as its device can (CAFF, arXiv 2411.07826)."""

from __future__ import annotations

from layerwise.schedule import check_rounds
from layerwise.schemes import Scheme
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
