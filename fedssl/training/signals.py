"""Ends of a run from outside: by a signal, by the end of its parent process, by the end of its time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.plugins.environments import SLURMEnvironment

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

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.on_train_start(trainer, pl_module)


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
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    over = any(seconds is not None and seconds <= 0 for seconds in left)
    return over and trainer.current_epoch < (trainer.max_epochs or 0)


def _ours() -> list[signal.Signals]:
    """Signals to handle: none outside the main thread, where Python forbids it, and no SIGUSR1 on Slurm.

    There Lightning uses SIGUSR1 to requeue the job.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [signal.SIGTERM, signal.SIGHUP, *([] if SLURMEnvironment.detect() else [signal.SIGUSR1])]


def _end(number: int, frame: FrameType | None) -> Any:
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once, should clean-up hang
    raise Ended(number)
