"""Wall-clock time and peak memory of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Stopwatch that adds up wall-clock seconds by phase.

    On a GPU work is queued, so phases there are timed by CUDA events, which cost no synchronisation until the seconds
    are read.

    Attributes:
        device: Device on which the work runs.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the enclosed work as a part of ``phase``."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
        else:
            began = time.perf_counter()
            yield
            self._add(phase, time.perf_counter() - began)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase so far, in the order in which the phases first came."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for phase, start, end in self._events:
            self._add(phase, start.elapsed_time(end) / 1000)
        self._events = []
        return dict(self._seconds)

    def restore(self, seconds: dict[str, float]) -> None:
        """Continue from the seconds that an interrupted run had counted."""
        self._seconds = dict(seconds)

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds


def peak_process_bytes() -> int:
    """Return the peak resident memory of the process since it started, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_device_peak(device: torch.device) -> None:
    """Reset the peak that ``memory_metrics`` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return the peak of this process and, on a GPU, of PyTorch's allocations since ``start_device_peak``."""
    metrics: dict[str, float] = {"cost/process_peak_bytes": peak_process_bytes()}
    if device.type == "cuda":
        metrics["cost/device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return metrics
