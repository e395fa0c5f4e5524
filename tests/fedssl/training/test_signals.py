"""Signals within this process; tests/test_endings.py has whole runs."""

import os
import signal
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import Timer

from fedssl.training.endings import Ended, ended_by_signals, out_of_time, status_of


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_the_program_with_its_status(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped, ended_by_signals():
        os.kill(os.getpid(), number)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before


def exit_as_lightning_does(interrupt: KeyboardInterrupt) -> None:
    try:
        raise interrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(("interrupt", "status"), [(KeyboardInterrupt(), 130), (Ended(signal.SIGTERM), 143)])
def test_lightnings_own_exit_gets_the_status_of_the_signal(interrupt: KeyboardInterrupt, status: int) -> None:
    with pytest.raises(SystemExit) as stopped, ended_by_signals():
        exit_as_lightning_does(interrupt)
    assert stopped.value.code == status == status_of(interrupt)


def test_other_exits_are_as_they_were() -> None:
    for code in (0, 3, "error: x"):
        with pytest.raises(SystemExit) as stopped, ended_by_signals():
            sys.exit(code)
        assert stopped.value.code == code


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_on_slurm_lightning_requeues(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_NTASKS", "1"), ("SLURM_JOB_NAME", "train")):
        monkeypatch.setenv(name, value)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL


@pytest.mark.parametrize(
    ("seconds", "rounds", "over"), [(0, 3, True), (0, 4, False), (1000, 3, False), (None, 3, False)]
)
def test_time_is_over_before_the_last_round(seconds: int | None, rounds: int, over: bool) -> None:
    timer = Timer(None if seconds is None else timedelta(seconds=seconds))
    trainer: Any = SimpleNamespace(callbacks=[timer], current_epoch=rounds, max_epochs=4)
    assert out_of_time(trainer) is over
