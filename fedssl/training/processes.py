"""Lightning's side of a run in several processes: how they start, find each other and wait."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from fedssl.training.process_engine import lost_ranks

PATIENCE = timedelta(days=7)
"""Time-out of collective operations. A slow client is no error, and a process that ends is noticed at once."""


class CohortStrategy(DDPStrategy):
    """Strategy for processes that divide cohorts: started like those of DDP, but without shared gradients or batches.

    Args:
        **kwargs: Keyword arguments of Lightning's ``DDPStrategy``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"timeout": PATIENCE} | kwargs)

    def configure_ddp(self) -> None:
        """Do nothing: the server's gradients are already equal in all processes."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Sampler settings that show every process all images: ``ProcessEngine`` divides the clients."""
        return {"num_replicas": 1, "rank": 0}

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the other processes.

        Raises:
            RankLostError: Another process has ended.
        """
        with lost_ranks():
            super().barrier(*args, **kwargs)


def process_rank() -> int:
    """Rank of this process in the run, from 0."""
    return getattr(rank_zero_only, "rank", 0)


def process_settings(strategy: Any, devices: Any) -> dict[str, Any]:
    """Trainer settings for several processes; empty for a single one.

    Args:
        strategy: ``trainer.strategy``; ``ddp``, and ``auto`` with several devices, divide cohorts.
        devices: ``trainer.devices``; under ``torchrun`` its number of processes counts instead.
    """
    settings: dict[str, Any] = {}
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        settings = {"devices": here, "num_nodes": int(os.environ["WORLD_SIZE"]) // here}
    # ``auto``, -1 and lists may mean one device or several, as only Lightning finds out; the strategy serves both.
    several = settings.get("num_nodes", 1) > 1 or str(settings.get("devices", devices)) != "1"
    if strategy == "ddp" or (strategy == "auto" and several):
        settings["strategy"] = CohortStrategy()
    return settings


UNREAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "accumulate_grad_batches": (
        (1,),
        "clients step after every batch; --model.micro_batch N takes less memory at a time",
    ),
    "gradient_clip_val": ((None,), "clients clip their steps by --model.gradient_clip_norm"),
    "gradient_clip_algorithm": ((None,), "clients clip by the norm alone, --model.gradient_clip_norm"),
    "limit_train_batches": ((0, 1), "a round is one batch; --data.train_images N takes fewer images"),
    "limit_predict_batches": ((1, None), "there is nothing to predict"),
    "overfit_batches": ((0,), "a round is one batch; --data.train_images N takes fewer images"),
    "val_check_interval": ((None, 1), "a round is one batch; set --trainer.check_val_every_n_epoch"),
    "reload_dataloaders_every_n_epochs": ((0,), "clients keep their images"),
    "min_epochs": ((None, 0), "set --model.rounds"),
    "min_steps": ((None,), "set --model.rounds"),
}
"""Trainer flags that no federated run reads: their harmless values, and the advice for any other value."""

LEAST = {"check_val_every_n_epoch": 1, "log_every_n_steps": 1, "num_sanity_val_steps": -1, "gradient_clip_val": 0}


def check_trains(trainer: Any) -> None:
    """Refuse a Trainer that would end before its first step and leave an untrained encoder as the result.

    Raises:
        ValueError: ``max_steps`` or ``limit_train_batches`` is 0.
    """
    for name in ("max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name} 0 trains nothing: leave it out, or evaluate with test")


def check_trainer(trainer: Any, rounds: int) -> None:
    """Check that a Trainer fits a federated run.

    Args:
        trainer: Lightning's Trainer.
        rounds: Communication rounds of the run.

    Raises:
        ValueError: The number of epochs differs, the strategy divides no cohorts, the precision is not supported, or
            nothing would read a setting.
    """
    check_trains(trainer)
    if trainer.max_epochs != rounds and not trainer.fast_dev_run:
        raise ValueError(
            f"trainer.max_epochs {trainer.max_epochs} differs from rounds {rounds}: a round is an epoch; leave "
            "trainer.max_epochs out and set model.rounds"
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, CohortStrategy):
        raise ValueError(
            f"{type(trainer.strategy).__name__} cannot divide cohorts among {trainer.world_size} processes: use "
            "trainer.strategy ddp, in Python fedssl.training.processes.CohortStrategy()"
        )
    # Half precision would need a gradient scaler, and local training steps its optimizers without Lightning.
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"trainer.precision {trainer.precision} is not supported: use 32-true or bf16-mixed")
    for name, (harmless, instead) in UNREAD.items():
        value = getattr(trainer, name, "as a time")  # Lightning keeps times elsewhere
        if value not in harmless and not trainer.fast_dev_run:
            raise ValueError(f"trainer.{name} {value} has no effect in a federated run: {instead}")
    # The only trace of the flag: the Trainer keeps no attribute of this name.
    if trainer._accelerator_connector._layer_sync is not None:
        raise ValueError("trainer.sync_batchnorm has no effect in a federated run: processes train different clients")
    check_intervals(trainer)


def check_intervals(trainer: Any) -> None:
    """Refuse intervals that Lightning accepts and then fails on within the run.

    Raises:
        ValueError: An interval or a limit is out of its range.
    """
    for name, lowest in LEAST.items():
        value = getattr(trainer, name)
        # Not ``value < lowest``, which NaN would pass.
        if value is not None and not value >= lowest:
            raise ValueError(f"trainer.{name} must be at least {lowest}, got {value}")


def check_monitors(trainer: Any) -> None:
    """Refuse callbacks of a private run that monitor exact client figures: the time of its end would leak them.

    Raises:
        ValueError: A callback monitors such a figure.
    """
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith(("client/", "cost/", "time/")):
            raise ValueError(f"{type(callback).__name__} monitors {monitor}, which is not private: choose one of eval/")
