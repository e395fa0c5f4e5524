"""Memory of this process, as the operating system and CUDA count it."""

from __future__ import annotations

import resource
import sys

import torch


def peak_process_bytes() -> int:
    """Most resident memory that the process has had since it started, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_device_peak(device: torch.device) -> None:
    """Forgets the peak that :func:`memory_metrics` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Peak of this process and, on a GPU, of what PyTorch had allocated there since :func:`start_device_peak`."""
    metrics: dict[str, float] = {"cost/process_peak_bytes": peak_process_bytes()}
    if device.type == "cuda":
        metrics["cost/device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return metrics
