"""Ends of a run: the signals that end it early, its progress by then, and the reason in words."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.plugins.environments import SLURMEnvironment

UNFINISHED = "UNFINISHED"
OUT_OF_TIME = 124
"""Exit status of a run that ``trainer.max_time`` ended, as of ``timeout(1)``."""


class Ended(KeyboardInterrupt):
    """End of the program by a signal; a ``KeyboardInterrupt``, so that code that handles Ctrl-C handles it as well.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM, SIGHUP and SIGUSR1 end the block as Ctrl-C does, with status 128 + the signal's number.

    Batch systems send these signals before they kill a job; a Python process would die of them without a word. A signal
    that somebody else ignores or handles is left to them (``nohup``, Flower's processes).
    """
    before = {number: signal.getsignal(number) for number in _ours()}
    free = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    try:
        for number in free:
            signal.signal(number, _end)
        yield
    except KeyboardInterrupt as interrupt:  # outside a Trainer; within one, the progress display has said more
        print(" by ".join(["stopped", *filter(None, [str(interrupt)])]), file=sys.stderr)
        sys.exit(status_of(interrupt))
    except SystemExit as stop:
        # Lightning catches the interrupt and exits with status 1, which a shell would take for an error of the run.
        if isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(status_of(stop.__context__))
        raise
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Exit status by which a shell recognises the signal."""
    return 128 + (interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT)


class HearSignals(Callback):
    """Callback that takes SIGTERM back from Lightning.

    Lightning's handler would end the run after its round, with status 0 and without a message. In a run of several
    processes it would also start a collective operation in the middle of another one.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook; remember the handler, which Lightning replaces between here and the start of training."""
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        if self._handler is _end:
            signal.signal(signal.SIGTERM, _end)

    on_test_start = on_train_start


def end_with_parent() -> None:
    """End this process by SIGTERM when the writing end of its standard input closes, as it does when its parent dies.

    The operating system closes the pipe however the parent ends, SIGKILL included. No handler of the parent's could do
    the same.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def out_of_time(trainer: Trainer) -> bool:
    """Tell if ``trainer.max_time`` ended training before its last round or epoch."""
    over = any(map(_is_over, trainer.callbacks))  # type: ignore[attr-defined]
    return over and trainer.current_epoch < (trainer.max_epochs or 0)


def _is_over(callback: Callback) -> bool:
    left = callback.time_remaining() if isinstance(callback, Timer) else None
    return left is not None and left <= 0


def _ours() -> list[signal.Signals]:
    """List the signals to handle: none outside the main thread, where Python forbids it, and no SIGUSR1 on Slurm.

    There Lightning uses SIGUSR1 to requeue the job.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [signal.SIGTERM, signal.SIGHUP, *([] if SLURMEnvironment.detect() else [signal.SIGUSR1])]


def _end(number: int, frame: FrameType | None) -> Any:
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once, should clean-up hang
    raise Ended(number)


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
        """Return the entries of ``results.json``; only an unfinished run lists what it lacks."""
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
    """Format one number, or the first and last of consecutive ones: "stages 3 to 6"."""
    return f"{word} {numbers[0]}" if len(numbers) == 1 else f"{word}s {numbers[0]} to {numbers[-1]}"


def batches_left_out(trainer: Trainer) -> bool:
    """Tell if ``limit_train_batches`` cuts every epoch short."""
    loader = trainer.train_dataloader
    return loader is not None and trainer.num_training_batches < len(loader)


def whole_epochs(trainer: Trainer) -> int:
    """Count complete epochs; Lightning also counts the one in which it stopped."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    cut = batches.processed < trainer.num_training_batches
    return max(0, trainer.current_epoch - cut)


def reason_of_end(trainer: Trainer) -> str:
    """Reason why a Trainer stopped before its last epoch; empty if the Trainer does not tell."""
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return f"trainer.max_steps {trainer.max_steps} was reached"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if _is_over(callback):
            return "trainer.max_time was over"
        if isinstance(callback, EarlyStopping) and trainer.should_stop and callback.stopping_reason_message:
            return f"EarlyStopping on {callback.monitor} ended it"
    if batches_left_out(trainer):
        return f"trainer.limit_train_batches {trainer.limit_train_batches} left out images of every epoch"
    return "a callback ended it" if trainer.should_stop else ""
