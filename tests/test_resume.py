"""Runs that are killed, interrupted or whose checkpoint is damaged."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_states import assert_same
from processes import start, wait_for
from tiny_runs import ROOT, TINY, TINY_FEDERATION, OnlyFitted, environment

from fedssl.__main__ import main

EVERYTHING = [
    *TINY_FEDERATION,
    "--trainer.logger=false",
    "--model.rounds=8",
    "--model.local_epochs=4",
    "--model.calibration.epochs=1",
    "--model.alignment=MoonAlignment",
    "--data.auxiliary_fraction=0.2",
    "--model.server_optimizer=torch.optim.SGD",
    "--model.server_optimizer.lr=1.0",
    "--model.server_optimizer.momentum=0.5",
    "--model.dropout=0.2",
]
CENTRALIZED = [
    *TINY,
    "--model.method=BYOL",
    "--trainer.max_epochs=8",
    "--data.batch_size=8",
    "--trainer.logger=false",
]

DEVICES = [
    "--model.encoder.options={channels: [8, 8, 16, 16]}",
    "--model.rounds=8",
    "--model.local_epochs=1",
    "--model.batch_size=8",
    "--model.participation=2",
    "--data.train_images=60",
    "--data.clients=4",
    "--trainer.logger=false",
]


def final_state(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").glob("*.ckpt"))
    return torch.load(newest, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("lw_fedssl.yaml", EVERYTHING),
        pytest.param("centralized.yaml", CENTRALIZED, marks=pytest.mark.soak),
        pytest.param("smartfreeze.yaml", DEVICES, marks=pytest.mark.soak),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(config: str, settings: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(["fit", "-c", config, *settings, f"--run_dir={whole}"], OnlyFitted)
    for checkpoint in ("00001.ckpt", "00004.ckpt"):
        resume = ["--ckpt_path=last"] if killed.exists() else []
        process = start(killed, config, [*settings, *resume])
        wait_for(killed / "checkpoints" / checkpoint, process)
        process.kill()
        process.wait()
    main(["fit", "-c", config, *settings, "--ckpt_path=last", f"--run_dir={killed}"], OnlyFitted)
    first, second = final_state(whole), final_state(killed)
    for key in (
        "state_dict",
        "optimizer_states",
        "global_step",
        "epoch",
        *{"server", "local"} & first.keys(),
    ):
        assert_same(first[key], second[key], key)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, killed)]
    assert len(rows[0]) == len(rows[1])
    assert len(list((killed / "checkpoints").iterdir())) == 2, "those that the kills left behind are gone"


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_with_a_usable_checkpoint(tmp_path: Path) -> None:
    folder, settings = tmp_path / "run", [*EVERYTHING, "--model.rounds=16"]
    process = start(folder, "lw_fedssl.yaml", settings)
    wait_for(folder / "checkpoints" / "00001.ckpt", process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT
    assert f"--run_dir {folder} --ckpt_path auto" in said
    assert "Traceback" not in said
    assert "nanobind" not in said
    assert not (folder / "lock").exists()
    main(["fit", "-c", "lw_fedssl.yaml", *settings, "--ckpt_path=last", f"--run_dir={folder}"], OnlyFitted)
    assert (folder / "checkpoints" / "00015.ckpt").exists()


@pytest.mark.slow
def test_a_truncated_checkpoint_is_refused_and_another_offered(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", f"--run_dir={folder}"]
    main(command, OnlyFitted)
    before, last = sorted((folder / "checkpoints").glob("*.ckpt"))
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--ckpt_path=last"])
    said = str(stopped.value.code)
    assert f"error: the checkpoint {last} is damaged: it is cut off" in said
    assert f"; go on from {before} instead" in said
    main([*command, f"--ckpt_path={before}"], OnlyFitted)


@pytest.mark.slow
def test_when_every_client_diverges_the_run_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["fit", "-c", "lw_fedssl.yaml", *EVERYTHING, f"--run_dir={folder}"]
    main([*command, "--trainer.max_steps=2"], OnlyFitted)
    good = {path: path.read_bytes() for path in (folder / "checkpoints").glob("*.ckpt")}
    assert good
    diverge = ["--model.optimizer.weight_decay=1e30", "--ckpt_path=last", "--changed_settings=accept"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *diverge])
    said = str(stopped.value.code)
    assert "no usable update" in said
    assert "clients 0, 1, 2: loss nan" in said
    assert {path: path.read_bytes() for path in (folder / "checkpoints").glob("*.ckpt")} == good


@pytest.mark.slow
def test_a_disk_that_refuses_a_checkpoint_stops_the_run_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = f"ulimit -f 200; exec {sys.executable} train.py fit -c lw_fedssl.yaml --trainer.logger=false"
    shell = ["bash", "-c", f'{command} "$@"', "bash", *TINY_FEDERATION, "--model.method.hidden_dim=400"]
    done = subprocess.run(
        [*shell, f"--run_dir={folder}"], capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert done.returncode not in (0, -signal.SIGXFSZ)
    assert "cannot write the checkpoint" in done.stderr
    assert "there is no earlier checkpoint" in done.stderr
    assert not list((folder / "checkpoints").glob("*"))
