"""A network so small that every device can train all of it."""

from __future__ import annotations

from layerwise.last_layers import LastLayers
from layerwise.stage import Stage


class AllSmall(LastLayers):
    """The deepest network that every device can train end to end, leaving aside those that can train none.

    A baseline in CAFF (arXiv 2411.07826) and the authors' earlier work; there it is named after the width, here it goes
    by depth (our reading). Its stage is end-to-end training of the first ``depth`` blocks.
    """

    name = "all-small"

    def choices(self, stage: Stage) -> list[Stage]:
        """All or nothing."""
        return [stage]
