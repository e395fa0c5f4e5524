"""Learning rate over the rounds (linear warm-up, then a constant rate or half a cosine) and over batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer

from fedssl.client.training_loop import scale_lr
from layerwise import Stage
from ssl_methods import OptimizerFactory, check_at_least


@dataclass(frozen=True)
class LRSchedule:
    """Factor of the learning rate, by round; by epoch where training is centralised.

    Of ``total`` rounds, the first W = ``warm_up`` have the factors 1 / (W + 1) to W / (W + 1). The others are constant,
    or fall from 1 along half a cosine that reaches c = ``cosine_to`` when the last one is over, as with PyTorch's
    ``CosineAnnealingLR``: c + (1 - c) (1 + cos(pi t / T)) / 2 in round t = 0 .. T - 1 of these T = total - W
    (Loshchilov and Hutter, "SGDR", ICLR 2017). The rate is the same in all local steps of a round.

    Args:
        warm_up: Rounds of linear warm-up.
        cosine_to: Fraction of the learning rate that the cosine falls to; ``None``: constant.
        over: Stretch that one warm-up and one cosine take: the whole ``run``, or every ``stage`` anew.

    Raises:
        ValueError: A value is out of its range.
    """

    warm_up: int = 0
    cosine_to: float | None = None
    over: Literal["run", "stage"] = "run"

    def __post_init__(self) -> None:
        check_at_least(0, **{"lr_schedule.warm_up": self.warm_up})
        if self.cosine_to is not None:
            check_at_least(0, 1, **{"lr_schedule.cosine_to": self.cosine_to})
        if self.over not in ("run", "stage"):
            raise ValueError(f"lr_schedule.over must be 'run' or 'stage', got {self.over!r}")

    def factor(self, done: int, total: int) -> float:
        """Return the factor of the round after ``done`` of ``total`` rounds."""
        if done < self.warm_up:
            return (done + 1) / (self.warm_up + 1)
        if self.cosine_to is None:
            return 1.0
        progress = (done - self.warm_up) / (total - self.warm_up)
        return self.cosine_to + (1 - self.cosine_to) * (1 + math.cos(math.pi * progress)) / 2

    def in_stage(self, stages: Sequence[Stage], index: int, done: int) -> float:
        """Return the factor of a round of a federated run.

        A stage counts with all the rounds that it may have, also if the pace controller ended it early: the next one
        begins where it would have begun, and the run ends at the end of the cosine.

        Args:
            stages: Stages of the run.
            index: Stage of the round.
            done: Rounds of this stage that are over.
        """
        if stages[index].full_lr:
            return 1.0
        counted = [0 if stage.full_lr else stage.rounds for stage in stages]
        if self.over == "stage":
            return self.factor(done, counted[index])
        return self.factor(sum(counted[:index]) + done, sum(counted))

    def check(self, stages: Sequence[Stage]) -> None:
        """Refuse a warm-up that leaves no round at the full learning rate.

        Raises:
            ValueError: It is as long as the run, or as the shortest stage if every stage has one.
        """
        counted = [stage.rounds for stage in stages if not stage.full_lr]
        self.check_length(min(counted) if self.over == "stage" else sum(counted), f"rounds of a {self.over}")

    def check_length(self, total: int, what: str) -> None:
        """Refuse a warm-up as long as ``total``, which counts ``what``.

        Raises:
            ValueError: It is.
        """
        if self.warm_up >= total:
            raise ValueError(
                f"lr_schedule.warm_up must be below the {total} {what}, got {self.warm_up}: "
                "lower --model.lr_schedule.warm_up"
            )


def linear_scaling(optimizer: OptimizerFactory, batch_size: int, base_batch_size: int | None) -> OptimizerFactory:
    """Return an optimizer whose learning rate is in proportion to the batch: lr * batch_size / base_batch_size.

    Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017. MoCo v3 and LW-FedSSL print rates for a batch of 256.

    Args:
        optimizer: Optimizer with the learning rate of ``base_batch_size``.
        batch_size: Samples a step.
        base_batch_size: ``None`` leaves the learning rate as it is.

    Raises:
        ValueError: ``base_batch_size`` is below 1.
    """
    if base_batch_size is None:
        return optimizer
    check_at_least(1, base_batch_size=base_batch_size)
    scale = batch_size / base_batch_size

    def scaled(parameters: Any) -> Optimizer:
        made = optimizer(parameters)
        scale_lr(made, scale)
        made.defaults["lr"] = made.defaults["lr"] * scale
        return made

    return scaled
