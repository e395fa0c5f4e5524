"""Lightning's side of several processes: how they are started and find each other."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from fedssl.ranks import lost_ranks

PATIENCE = timedelta(days=7)
"""How long a process waits for another one's client; a process that ends is noticed at once."""


class CohortStrategy(DDPStrategy):
    """Processes that divide cohorts: they are started like those of DDP, but share no gradients and no batches.

    Args:
        **kwargs: Those of Lightning's ``DDPStrategy``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"timeout": PATIENCE} | kwargs)

    def configure_ddp(self) -> None:
        """Nothing: a server's gradients are the same in all processes."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process sees all images: :class:`fedssl.ranks.Ranks` divides the clients."""
        return {"num_replicas": 1, "rank": 0}

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Waits for the others.

        Raises:
            RankLostError: One has ended.
        """
        with lost_ranks():
            super().barrier(*args, **kwargs)


def process_rank() -> int:
    """Which of the run's processes this is, from 0."""
    return getattr(rank_zero_only, "rank", 0)


def process_settings(strategy: Any, devices: Any) -> dict[str, Any]:
    """Trainer settings for several processes, if there are to be several.

    Args:
        strategy: ``trainer.strategy``; where it is ``ddp``, or ``auto`` with several devices, cohorts are divided.
        devices: ``trainer.devices``; under ``torchrun`` its number of processes counts instead.
    """
    settings: dict[str, Any] = {}
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        settings = {"devices": here, "num_nodes": int(os.environ["WORLD_SIZE"]) // here}
    several = settings.get("num_nodes", 1) > 1 or str(settings.get("devices", devices)) != "1"
    if strategy == "ddp" or (strategy == "auto" and several):
        settings["strategy"] = CohortStrategy()
    return settings
