"""A run of seconds that is damaged, killed and starved of space."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor, equal

from fedssl.__main__ import main

ROOT = Path(__file__).parent.parent.parent
VIT = "--model.encoder.options={patch_size: 4, depth: 2, embed_dim: 16, num_heads: 2, global_pool: avg}"
HEADS = ["--model.method.hidden_dim=16", "--model.method.output_dim=8"]
CLIENTS = ["--model.local_epochs=1", "--model.batch_size=8", "--data.train_images=60", "--data.clients=3"]
QUIET = ["--trainer.logger=false", "--trainer.check_val_every_n_epoch=100"]
RUN = ["-c", "lw_fedssl.yaml", VIT, *HEADS, *CLIENTS, *QUIET, "--model.rounds=4"]


def fit(arguments: list[str]) -> str:
    """Runs the command line in this process: ``done``, its error message, or ``traceback`` and the error."""
    heard, own = io.StringIO(), sys.argv[1:]
    try:
        with redirect_stdout(heard), redirect_stderr(heard):
            main(["fit", *arguments])
    except SystemExit as ended:
        return str(ended.code).splitlines()[0]
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        sys.argv[1:] = own
    return "done"


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Runs the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "train.py", "fit", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def same(a: Any, b: Any) -> bool:
    """Compare two states, measured seconds aside."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a.keys() - {"seconds"})
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return equal(a, b) if isinstance(a, Tensor) else bool(a == b)
