"""How far a run came of what it had planned, and what ended it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer

UNFINISHED = "UNFINISHED"


@dataclass(frozen=True)
class RunProgress:
    """How far a run came.

    Attributes:
        unit: What it counts: ``rounds`` or ``epochs``.
        done: How many were trained.
        planned: How many there would have been at most.
        finished: Whether training came to its end; a pace controller may end it before ``planned``.
        stages: Stages of the run; 0 where there are none.
        incomplete: Stages, from 1, that were begun and did not end.
        untrained: Stages, from 1, that were never begun.
        blocks: How many blocks were trained, be it in part, and how many the encoder has; ``None`` without stages.
        reason: What ended the run early, in words; empty if it is not known, or if the run finished.
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
        """For ``results.json``: what a finished run did, or what an unfinished one lacks."""
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
    """What an unfinished run lacks, in a sentence without its full stop; empty for a finished one.

    Args:
        results: ``results.json``; those of older versions do not say and count as finished.
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
    """One number, or the first and the last of several that follow each other: "stages 3 to 6"."""
    return f"{word} {numbers[0]}" if len(numbers) == 1 else f"{word}s {numbers[0]} to {numbers[-1]}"


def batches_left_out(trainer: Trainer) -> bool:
    """Whether ``limit_train_batches`` cuts every epoch short."""
    loader = trainer.train_dataloader
    return loader is not None and trainer.num_training_batches < len(loader)


def whole_epochs(trainer: Trainer) -> int:
    """Epochs that are over; Lightning also counts the one in which it stopped."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    cut = batches.processed < trainer.num_training_batches
    return max(0, trainer.current_epoch - cut)


def reason_of_end(trainer: Trainer) -> str:
    """What made a Trainer stop before its last epoch, as far as it tells; empty if it does not."""
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
