"""Whole runs of ``train.py`` behind a benchmark."""

from __future__ import annotations

import os
import sys

from fedssl.comparison.grid import GridRun, place
from fedssl.comparison.run import Run
from fedssl.comparison.runner import run_missing, run_of


def finish(planned: list[GridRun], jobs: int) -> list[Run]:
    """The runs in the given order; those that have not ended yet are started or resumed, one thread each."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = place(planned)
    failed = run_missing(runs, jobs)
    if failed:
        sys.exit("\n".join(f"error: {folder}: {reason}" for folder, reason in failed.items()))
    return [run_of(run, failed) for run in runs]
