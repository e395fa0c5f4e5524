"""Forecast of a client's needs in a round of a stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedssl.costs.prediction import StepPredictor
from fedssl.protocol.messages import num_bytes
from layerwise import Stage


@dataclass(frozen=True)
class Need:
    """Needs of one client in one round.

    Args:
        peak_memory_bytes: Peak of a local step at its largest batch; with a memory budget what a device must have.
        macs: Multiply-accumulates of local training, without filling a bank.
        active_bytes: Bytes of the trained layers and heads, which travel both ways.
    """

    peak_memory_bytes: int
    macs: int
    active_bytes: int


class Forecast:
    """Forecast of the needs of a client with some number of images at a stage.

    Args:
        predictor: Predictor of local steps; its model is attached to the stages asked for and keeps its weights.
        epochs: Local epochs a round.
        batch_size: Images a step.
        memory: Bytes that a device must have for a stage and batch size; ``None``: the step's predicted peak.
    """

    def __init__(
        self, predictor: StepPredictor, epochs: int, batch_size: int, memory: Callable[[Stage, int], int] | None = None
    ) -> None:
        self.predictor = predictor
        self._epochs = epochs
        self._batch_size = batch_size
        self._memory = memory or (lambda stage, size: predictor(stage, size).peak)
        self._needs: dict[tuple[Stage, int], Need] = {}

    def __call__(self, stage: Stage, num_images: int) -> Need:
        """Return the need; it is computed once for each form of a stage and number of images."""
        form = self.predictor.canonical_stage(stage)
        if (form, num_images) not in self._needs:
            self._needs[form, num_images] = self._compute(stage, num_images)
        return self._needs[form, num_images]

    def filling_macs(self, stage: Stage, num_images: int) -> int:
        """Return the multiply-accumulates of filling a client's bank once."""
        bank = self.predictor.bank
        if bank is None:
            return 0
        step = self.predictor(stage, self._batch_size)
        return bank.pairs * num_images * step.filling_macs // self._batch_size

    def steps(self, num_images: int) -> int:
        """Return the optimizer steps of a round."""
        return self._epochs * batches_of_epoch(num_images, self._batch_size).total()

    def _compute(self, stage: Stage, num_images: int) -> Need:
        steps, model = batches_of_epoch(num_images, self._batch_size), self.predictor.model
        macs = self._epochs * sum(count * self.predictor(stage, size).macs for size, count in steps.items())
        active = num_bytes(model.read(model.trained_names(stage)))
        # A client without steps is priced at the smallest batch that can be contrasted.
        peak = self._memory(stage, max(steps, default=2)) + self.predictor.bank_bytes(stage, num_images)
        return Need(peak, macs, active)


def batches_of_epoch(images: int, batch_size: int) -> Counter[int]:
    """Count the local steps of one epoch by batch size; a batch of one image gives no step."""
    full, rest = divmod(images, batch_size)
    return Counter({batch_size: full} if full else {}) + Counter({rest: 1} if rest > 1 else {})


def step_sizes(images: Iterable[int], batch_size: int) -> list[int]:
    """Return the images in the local steps of clients, each number once, the largest first."""
    return sorted({size for number in images for size in batches_of_epoch(number, batch_size)}, reverse=True)


def largest_batch(images: Iterable[int], batch_size: int) -> int:
    """Return the images of the largest local step of any client."""
    return max(step_sizes(images, batch_size), default=2)
