"""Seconds by phase."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from fedssl.utils.resources import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the stopwatch reads; tests set it."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_phases_add_up_in_the_order_in_which_they_came(clock: list[float]) -> None:
    times = Stopwatch()
    for phase, seconds in (("forward", 2.0), ("backward", 3.0), ("forward", 0.5)):
        with times(phase):
            clock[0] += seconds
        clock[0] += 10.0  # between phases nothing counts
    assert list(times.seconds().items()) == [("forward", 2.5), ("backward", 3.0)]


def test_phases_may_be_nested(clock: list[float]) -> None:
    times = Stopwatch()
    with times("round"):
        clock[0] += 1.0
        with times("step"):
            clock[0] += 2.0
    assert times.seconds() == {"step": 2.0, "round": 3.0}


def test_seconds_are_a_copy_and_reading_changes_nothing(clock: list[float]) -> None:
    times = Stopwatch()
    with times("step"):
        clock[0] += 1.0
    times.seconds()["step"] = 50.0
    assert times.seconds() == {"step": 1.0}
    assert Stopwatch().seconds() == {}


def test_restored_seconds_go_on(clock: list[float]) -> None:
    times, kept = Stopwatch(), {"step": 4.0, "gone": 1.0}
    times.restore(kept)
    with times("step"):
        clock[0] += 2.0
    assert times.seconds() == {"step": 6.0, "gone": 1.0}
    assert kept == {"step": 4.0, "gone": 1.0}


def test_a_resumed_run_counts_from_its_checkpoint(make_world: Callable[..., Any]) -> None:
    stopped, resumed = make_world(), make_world()
    stopped.run(2)
    checkpoint = stopped.checkpoint()
    before = checkpoint["server"]["seconds"] | checkpoint["local"]["seconds"]
    assert before.keys() == {"aggregation", "augmentation", "forward", "backward", "optimizer"}
    assert min(before.values()) > 0
    resumed.restore(checkpoint)
    at_once = resumed.server.times.seconds() | resumed.local.book.times.seconds()
    assert at_once == before
    resumed.round()
    after = resumed.server.times.seconds() | resumed.local.book.times.seconds()
    assert all(after[phase] > seconds for phase, seconds in before.items())
