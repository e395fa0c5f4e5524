"""Budgets from what memory was available lately."""

from pathlib import Path

import numpy as np
import pytest

from fedssl.memory_budget.availability import (
    WINDOW,
    Availability,
    available_memory,
    left_of_group,
    mem_available,
    predict_budget,
)

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000 kB\nMemAvailable:    4000000 kB\n"


def test_meminfo_is_read_in_kibibytes() -> None:
    assert mem_available(MEMINFO) == 4000000 * 1024
    assert mem_available("MemTotal: 3 kB\n") is None


@pytest.mark.parametrize(
    ("limit", "usage", "left"),
    [
        ("1000\n", "400\n", 600),
        ("1000", "1200", 0),
        ("max\n", "400\n", None),
        ("9223372036854771712", "5", None),
        ("", "", None),
    ],
)
def test_what_a_group_leaves(limit: str, usage: str, left: int | None) -> None:
    assert left_of_group(limit, usage) == left


@pytest.mark.parametrize("version", [1, 2])
def test_the_tighter_of_machine_and_group_counts(version: int, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    with pytest.raises(ValueError, match="needs Linux"):
        available_memory(tmp_path)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    assert available_memory(tmp_path) == 4000000 * 1024
    groups = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    groups.mkdir(parents=True)
    names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    for name, number in zip(names, (5000, 1000), strict=True):
        (groups / f"memory.{name}").write_text(f"{number}\n")
    assert available_memory(tmp_path) == 4000


def test_few_readings_call_for_caution() -> None:
    assert predict_budget([100.0]) == 80.0
    assert predict_budget([1000.0, 100.0]) == 80.0


def test_steady_memory_loses_a_tenth_only() -> None:
    assert predict_budget([100.0] * 5) == pytest.approx(90.0)


def test_computed_by_hand() -> None:
    # mean: 100, 100 + .3 * 20 = 106, 106 + .3 * -6 = 104.2; median 100, deviations 0, 20, 0: MAD 0
    assert predict_budget([100.0, 120.0, 100.0]) == pytest.approx(0.9 * 104.2)


def test_never_more_than_the_last_reading_and_old_ones_are_forgotten() -> None:
    assert predict_budget([100.0] * 9 + [10.0]) == 10.0
    assert predict_budget([1.0] * 50 + [100.0] * 20) == pytest.approx(90.0)


def test_it_covers_nearly_all_of_what_comes() -> None:
    rng = np.random.default_rng(0)
    trace = (1000 + 50 * rng.standard_normal(400)).tolist()
    covered = [trace[i] >= predict_budget(trace[:i]) for i in range(20, 400)]
    assert np.mean(covered) >= 0.95


@pytest.mark.parametrize("readings", [[], [10.0, -1.0]])
def test_impossible_readings_are_refused(readings: list[float]) -> None:
    with pytest.raises(ValueError, match="readings of available memory"):
        predict_budget(readings)


def test_a_trace_gives_the_same_budget_whatever_was_asked_before() -> None:
    trace = [1000, 2000, 500, 1500]
    once = Availability(trace)
    assert [Availability(trace).budget(i) for i in range(6)] == [once.budget(i) for i in range(6)]
    steady = Availability([1000])
    assert 0.9 * 900 < steady.budget(5) <= 900
    assert steady.budget(5) == steady.budget(9)
    assert Availability([1]).budget(0) == 0.0


def test_without_a_trace_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000, 800, 600])
    monkeypatch.setattr("fedssl.memory_budget.availability.available_memory", lambda: next(readings))
    here = Availability(None)
    assert here.budget(0) == here.budget(0) <= 800
    assert here.budget(1) <= 640


def test_readings_that_no_longer_count_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedssl.memory_budget.availability.available_memory", lambda: 1000)
    here = Availability(None)
    for round_ in range(WINDOW + 5):
        here.budget(round_)
    assert list(here._readings) == list(range(5, WINDOW + 5))
