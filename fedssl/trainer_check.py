"""Which Lightning Trainers can drive a federation."""

from __future__ import annotations

from typing import Any

from fedssl.ddp import CohortStrategy


def check_trains(trainer: Any) -> None:
    """Refuses a Trainer that would end before its first step, and leave an untrained encoder as the result.

    Raises:
        ValueError: It would.
    """
    for name in ("max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name} 0 trains nothing: leave it out, or evaluate with test")


def check_trainer(trainer: Any, rounds: int) -> None:
    """Compares a Trainer with a run.

    Args:
        trainer: The Trainer.
        rounds: Communication rounds of the run.

    Raises:
        ValueError: It has another number of epochs, divides no cohorts among its processes, or has an unsupported
            precision.
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
            "trainer.strategy ddp, in Python fedssl.ddp.CohortStrategy()"
        )
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"trainer.precision {trainer.precision} is not supported: use 32-true or bf16-mixed")


def check_monitors(trainer: Any) -> None:
    """Refuses callbacks of a private run that decide by what clients gave exactly: when it ends would tell of it.

    Raises:
        ValueError: There is one.
    """
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith(("client/", "cost/", "time/")):
            raise ValueError(f"{type(callback).__name__} monitors {monitor}, which is not private: choose one of eval/")
