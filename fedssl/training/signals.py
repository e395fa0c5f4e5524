"""How a run is ended from outside: by signals, by the end of its parent, by the end of its time."""

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
    """A signal asked the program to end; whatever ends on Ctrl-C ends on this as well.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block SIGTERM, SIGHUP and SIGUSR1 end the program as Ctrl-C does: with status 128 + their number.

    A signal that somebody has chosen to ignore or to handle stays with them (``nohup``, Flower's processes).
    """
    before = {number: signal.getsignal(number) for number in _ours()}
    free = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    try:
        for number in free:
            signal.signal(number, _end)
        yield
    except KeyboardInterrupt as interrupt:  # not within a Trainer, where the display has said more
        print(" by ".join(["stopped", *filter(None, [str(interrupt)])]), file=sys.stderr)
        sys.exit(status_of(interrupt))
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's own exit, always with status 1
            sys.exit(status_of(stop.__context__))
        raise
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def status_of(interrupt: KeyboardInterrupt) -> int:
    """The exit status that tells a shell which signal it was."""
    return 128 + (interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT)


class HearSignals(Callback):
    """Takes SIGTERM back from Lightning, which would end the run after its round, with status 0 and without a word.

    Its handler also talks to the other processes of a run in the middle of whatever they are talking about.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook; remembers who heard the signal before Lightning did."""
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

    The operating system closes it however the parent ends, SIGKILL included.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def out_of_time(trainer: Trainer) -> bool:
    """Whether ``trainer.max_time`` ended training before its last round or epoch."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    over = any(seconds is not None and seconds <= 0 for seconds in left)
    return over and trainer.current_epoch < (trainer.max_epochs or 0)


def _ours() -> list[signal.Signals]:
    """None outside the main thread, where signals cannot be handled; SIGUSR1 is Lightning's own on Slurm."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [signal.SIGTERM, signal.SIGHUP, *([] if SLURMEnvironment.detect() else [signal.SIGUSR1])]


def _end(number: int, frame: FrameType | None) -> Any:
    signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
    raise Ended(number)
