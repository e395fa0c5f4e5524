"""What a round of a stage asks of a client, known before it takes part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedssl.client.bank import ActivationBank
from fedssl.costs.prediction import StepPrediction, StepPredictor
from fedssl.protocol.messages import num_bytes
from fedssl.protocol.parts import SplitModel
from layerwise import Stage


@dataclass(frozen=True)
class Need:
    """What one round asks of one client.

    Args:
        peak_memory_bytes: Of a local step at its largest batch; with a memory budget what its device must have.
        macs: Of local training, without filling a bank.
        active_bytes: Of the trained layers and heads, which travel both ways.
    """

    peak_memory_bytes: int
    macs: int
    active_bytes: int


class Forecast:
    """Predicts what a client with some number of images needs at a stage.

    Args:
        model: Its method is attached to the stages asked for; its weights are not changed.
        predictor: Predicts local steps of this model.
        epochs: Local epochs a round.
        batch_size: Images a step.
        memory: What a device must have for a stage and batch size; ``None``: the step's predicted peak.
    """

    def __init__(
        self,
        model: SplitModel,
        predictor: StepPredictor,
        epochs: int,
        batch_size: int,
        memory: Callable[[Stage, int], int] | None = None,
    ) -> None:
        self._model = model
        self._predictor = predictor
        self._epochs = epochs
        self._batch_size = batch_size
        self._memory = memory or (lambda stage, size: predictor(stage, size).peak)
        self._needs: dict[tuple[Stage, int], Need] = {}

    def __call__(self, stage: Stage, num_images: int) -> Need:
        """The need; computed once for each stage and number of images."""
        key = (stage, num_images)
        if key not in self._needs:
            steps = batches_of_epoch(num_images, self._batch_size)
            macs = self._epochs * sum(count * self.step(stage, size).macs for size, count in steps.items())
            active = num_bytes(self._model.read(self._model.trained_names(stage)))
            peak = self._memory(stage, max(steps, default=2)) + self._predictor.bank_bytes(stage, num_images)
            self._needs[key] = Need(peak, macs, active)
        return self._needs[key]

    @property
    def bank(self) -> ActivationBank | None:
        """What clients store of the frozen prefix's outputs, if they do."""
        return self._predictor.bank

    def filling_macs(self, stage: Stage, num_images: int) -> int:
        """Multiply-accumulates of filling a client's bank once."""
        if self.bank is None:
            return 0
        return self.bank.pairs * num_images * self.step(stage, self._batch_size).filling_macs // self._batch_size

    def step(self, stage: Stage, batch_size: int) -> StepPrediction:
        """One local step."""
        return self._predictor(stage, batch_size)


def batches_of_epoch(images: int, batch_size: int) -> Counter[int]:
    """Local steps of one epoch by batch size; a batch of one image gives no step."""
    full, rest = divmod(images, batch_size)
    return Counter({batch_size: full} if full else {}) + Counter({rest: 1} if rest > 1 else {})


def step_sizes(images: Iterable[int], batch_size: int) -> list[int]:
    """Images in the local steps of clients, each number once, the largest first."""
    return sorted({size for number in images for size in batches_of_epoch(number, batch_size)}, reverse=True)


def largest_batch(images: Iterable[int], batch_size: int) -> int:
    """Images of the largest local step of any client."""
    return max(step_sizes(images, batch_size), default=2)
