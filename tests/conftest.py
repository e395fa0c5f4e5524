"""Shared fixtures: threads, W&B and how whole runs are started."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import ROOT, environment

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)


@pytest.fixture
def train() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``train.py`` in its own process and returns what it printed."""

    def run(*arguments: str | Path, ok: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment())
        assert not ok or done.returncode == 0, done.stderr[-3000:]
        return done

    return run
