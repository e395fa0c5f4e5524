"""Progress of a run: rounds done and planned, stages left out, and the reason of an early end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer

UNFINISHED = "UNFINISHED"


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run at its end.

    Attributes:
        unit: Unit of the counts: ``rounds`` or ``epochs``.
        done: Rounds or epochs that were trained.
        planned: Largest number of rounds or epochs that could have been trained.
        finished: Training came to its end; a pace controller may end it before ``planned``.
        stages: Stages of the run; 0 for training without stages.
        incomplete: Stages, from 1, that were begun and did not end.
        untrained: Stages, from 1, that were never begun.
        blocks: Number of blocks trained, at least in part, and of all blocks; ``None`` without stages.
        reason: Cause of an early end, in words; empty if it is unknown or the run finished.
    """

    unit: str
    done: int
    planned: int
    finished: bool
    stages: int = 0
    incomplete: tuple[int, ...] = ()
    untrained: tuple[int, ...] = ()
    blocks: tuple[int, int] | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Entries of ``results.json``; only an unfinished run lists what it lacks."""
        found: dict[str, Any] = {"finished": self.finished, f"{self.unit}_done": self.done}
        found[f"{self.unit}_planned"] = self.planned
        if self.finished:
            return found
        if self.stages:
            found |= {"stages_incomplete": list(self.incomplete), "stages_untrained": list(self.untrained)}
        if self.blocks:
            found |= {"blocks_trained": self.blocks[0], "blocks_planned": self.blocks[1]}
        return found | {"reason": self.reason or None}


def shortfall(results: dict[str, Any]) -> str:
    """Describe what an unfinished run lacks, as a sentence without its full stop; empty for a finished one.

    Args:
        results: Content of ``results.json``; without the key ``finished``, as in older versions, it counts as finished.
    """
    if results.get("finished", True):
        return ""
    unit = "rounds" if "rounds_done" in results else "epochs"
    said = [f"{results[f'{unit}_done']} of {results[f'{unit}_planned']} {unit}"]
    for key, what in (("stages_incomplete", "not completed"), ("stages_untrained", "never trained")):
        if results.get(key):
            said.append(f"{numbered('stage', results[key])} {what}")
    if "blocks_planned" in results:
        said.append(f"{results['blocks_trained']} of {results['blocks_planned']} blocks trained")
    if results.get("reason"):
        said.append(results["reason"])
    return "; ".join(said)


def numbered(word: str, numbers: Sequence[int]) -> str:
    """Text for one number, or for the first and last of consecutive ones: "stages 3 to 6"."""
    return f"{word} {numbers[0]}" if len(numbers) == 1 else f"{word}s {numbers[0]} to {numbers[-1]}"


def batches_left_out(trainer: Trainer) -> bool:
    """Tell if ``limit_train_batches`` cuts every epoch short."""
    loader = trainer.train_dataloader
    return loader is not None and trainer.num_training_batches < len(loader)


def whole_epochs(trainer: Trainer) -> int:
    """Number of complete epochs; Lightning also counts the one in which it stopped."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    cut = batches.processed < trainer.num_training_batches
    return max(0, trainer.current_epoch - cut)


def reason_of_end(trainer: Trainer) -> str:
    """Reason why a Trainer stopped before its last epoch; empty if the Trainer does not tell."""
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return f"trainer.max_steps {trainer.max_steps} was reached"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return "trainer.max_time was over"
        if isinstance(callback, EarlyStopping) and trainer.should_stop and callback.stopping_reason_message:
            return f"EarlyStopping on {callback.monitor} ended it"
    if batches_left_out(trainer):
        return f"trainer.limit_train_batches {trainer.limit_train_batches} left out images of every epoch"
    return "a callback ended it" if trainer.should_stop else ""
