"""Whole runs that several processes share, against the same run in one process."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_states import assert_same
from processes import train
from tiny_runs import ROOT, TINY_FEDERATION, environment

from fedssl.__main__ import main

# What passes between processes: results, failures, client_states of alignment, start rule and bank, calibrated weights.
EVERYTHING = [
    *TINY_FEDERATION,
    "--trainer.logger=false",
    "--model.method=BYOL",
    "--model.start=FedEMA",
    "--model.alignment=MoonAlignment",
    "--model.calibration.epochs=1",
    "--data.auxiliary_fraction=0.2",
    "--model.server_optimizer=torch.optim.SGD",
    "--model.server_optimizer.lr=1.0",
    "--model.server_optimizer.momentum=0.5",
    "--model.dropout=0.2",
    "--model.bank=ActivationBank",
    "--model.compression=TopK",
]
FIT = ["fit", "-c", "lw_fedssl.yaml"]


def assert_same_end(first: Path, second: Path) -> None:
    """Equal checkpoints; which steps were metered is a process' own business."""
    ends: list[dict[str, Any]] = []
    for folder in (first, second):
        newest = max((folder / "checkpoints").glob("*.ckpt"))
        end = torch.load(newest, weights_only=True)
        end["local"]["costs"] = []
        ends.append(end)
    for key in ("state_dict", "optimizer_states", "global_step", "epoch", "depth", "data", "server", "local"):
        assert_same(ends[0][key], ends[1][key], key)


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    one, two, resumed = tmp_path / "one", tmp_path / "two", tmp_path / "resumed"
    main([*FIT, *EVERYTHING, f"--run_dir={one}"])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    done = subprocess.run(
        [*launch, *FIT, *EVERYTHING, f"--run_dir={two}"], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("everything is in") == 1
    assert done.stderr.count("4/4 stage 2/2") == 1
    assert_same_end(one, two)

    shutil.copytree(one, resumed)
    (resumed / "checkpoints" / "00003.ckpt").unlink()
    train(*FIT, *EVERYTHING, f"--run_dir={resumed}", "--ckpt_path=last", "--trainer.devices=2")
    assert_same_end(one, resumed)
