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
    """Forgets the peak that :func:`peak_device_bytes` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_device_bytes(device: torch.device) -> int | None:
    """Most bytes that PyTorch had allocated on a GPU since :func:`start_device_peak`; ``None`` on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
