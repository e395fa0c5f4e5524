"""Every YAML in configs/ runs, shrunk, and goes on after a kill."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from compare_states import assert_same
from tiny_runs import ROOT, TINY, TINY_FEDERATION, TINY_TEXT, OnlyFitted, Unstarted

from fedssl import FederatedSSL
from fedssl.__main__ import main
from fedssl.comparison.grid import Grid, GridRun
from fedssl.training.checkpoints import read_checkpoint

COMPARISON = ROOT / "configs" / "comparison.yaml"
PAPER = ROOT / "configs" / "paper"
COMPARISONS = sorted(PAPER.glob("compare_*.yaml"))
LAYERS = {
    PAPER / "small_cifar10.yaml": "lw_fedssl_v4",
    PAPER / "small_resnet.yaml": "lw_fedssl_v4",
    PAPER / "small_bloodmnist.yaml": "lw_fedssl_bloodmnist",
}
"""Settings that lie over those of another file."""
CONFIGS = sorted({*(ROOT / "configs").rglob("*.yaml")} - {COMPARISON, *COMPARISONS})
DIGITS = [
    "--data.dataset=digits",
    "--data.channels=3",
    "--data.eval_train_split=train",
    "--data.partition=IID",
]
VIT = "--model.encoder.options={patch_size: 16, depth: 2, embed_dim: 16, num_heads: 2}"
SUPERVISED = [
    "--model.encoder.options={channels: [8, 8, 16, 16]}",
    "--model.local_epochs=1",
    "--model.batch_size=8",
    "--data.train_images=60",
    "--data.clients=4",
    "--trainer.check_val_every_n_epoch=1",
]
UNLIKE = re.compile(r"time/(?!simulated)|cost/process_peak_bytes")
"""Metrics in which equal runs differ."""

OWN = {
    "caff": [
        "--model.encoder.options={patch_size: 4, depth: 2, embed_dim: 16, num_heads: 2, global_pool: avg}",
        "--model.scheme.depths=[1, 2]",
        "--model.rounds=2",
        "--model.batch_size=8",
        "--data.train_images=90",
        "--data.partition=IID",
        "--trainer.check_val_every_n_epoch=1",
    ],
    "fll": [*TINY_FEDERATION, "--model.scheme.layer_budget=2"],
    "fedhybrid": [*TINY_FEDERATION, "--data.clients=6"],
    "pretrain_tiny_lm": TINY_TEXT,
    "progfed": [*SUPERVISED, "--model.rounds=11"],
    "small_resnet_centralized": [
        *DIGITS[:3],
        "--model.encoder.options={channels: [8, 8, 16, 16]}",
        "--model.method.hidden_dim=16",
        "--model.finetuning={epochs: 1, warmup_epochs: 0}",
        "--trainer.max_epochs=2",
        "--trainer.check_val_every_n_epoch=1",
        "--data.train_images=40",
        "--data.batch_size=8",
        "--data.eval_train_images=null",
    ],
    "smartfreeze": [*SUPERVISED, "--model.rounds=8", "--model.participation=2"],
}
"""What suits the configurations that are not of the common form."""


def shrunk(path: Path) -> list[str]:
    """Settings that make a configuration run in seconds on embedded data."""
    if path.stem == "evaluate":
        return []
    if path.stem in OWN:
        return OWN[path.stem]
    if path.parent.name == "configs":
        epochs = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
        return TINY_FEDERATION if path.stem != "centralized" else [*TINY, *epochs]
    resnet = "resnet" in path.stem
    return [
        *DIGITS,
        *([] if resnet else [VIT]),
        f"--model.rounds={4 if resnet else 2}",
        "--model.local_epochs=1",
        "--model.batch_size=8",
        "--model.method.hidden_dim=16",
        "--model.finetuning.epochs=1",
        "--model.finetuning.warmup_epochs=0",
        "--trainer.check_val_every_n_epoch=1",
        "--data.eval_dataset=digits",
        "--data.train_images=40",
        "--data.eval_train_images=null",
        "--data.clients=2",
    ]


def resume_half_way(command: list[str], run: Path) -> None:
    """Goes on in a copy of a run's folder, which looks as if the process had been killed, and compares the ends."""
    killed = run.with_name("killed")
    shutil.copytree(run, killed)
    checkpoints = sorted((killed / "checkpoints").glob("*.ckpt"))
    for later in checkpoints[len(checkpoints) // 2 :]:
        later.unlink()
    main(["fit", *command, "--trainer.logger=false", f"--run_dir={killed}", "--ckpt_path=last"], OnlyFitted)
    whole, resumed = (read_checkpoint(folder / "checkpoints" / checkpoints[-1].name) for folder in (run, killed))
    assert whole.keys() == resumed.keys()
    assert_same(*({key: state[key] for key in state.keys() - {"loops"}} for state in (whole, resumed)))
    rows, again = measured(run / "metrics.csv"), measured(killed / "metrics.csv")
    assert len(rows) - 1 <= len(again) <= len(rows), "all but that of the final evaluation"
    assert all(some.items() <= row.items() for row, some in zip(rows, again, strict=False))


def measured(metrics: Path) -> list[dict[str, str]]:
    """What the rows of a run say, without what a clock or the operating system measured."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if row[key] and not UNLIKE.match(key)} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs_and_goes_on_bit_for_bit_after_a_kill(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedssl.training.checkpoints.KEPT", 99)
    below = ["-c", str(PAPER / f"{LAYERS[path]}.yaml")] if path in LAYERS else []
    command, run = [*below, "-c", str(path), *shrunk(path)], tmp_path / "run"
    if path.stem == "evaluate":
        fitted = tmp_path / "fitted"
        lw_fedssl = [
            "-c",
            "lw_fedssl.yaml",
            *TINY_FEDERATION,
            "--trainer.logger=false",
            f"--run_dir={fitted}",
        ]
        main(["fit", *lw_fedssl])
        main(["test", *command, f"--run_dir={run}", f"--model.folder={fitted / 'encoder'}"])
        assert (run / "test.json").exists()
        return
    main(["fit", *command, "--trainer.logger=false", f"--run_dir={run}"])
    results = json.loads((run / "results.json").read_text())
    assert results["perplexity" if OWN.get(path.stem) is TINY_TEXT else "linear_top1"] > 0
    assert ("finetuned_top1" in results) == (path.parent.name == "paper")
    resume_half_way(command, run)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("lw_fedssl_v4", 3.0e-4),
        ("lw_fedssl_bloodmnist", 7.5e-5),
        ("small_bloodmnist", 1.0e-3),
        ("small_cifar10", 1.0e-3),
        ("small_resnet", 2.0e-3),
    ],
)
def test_rates_of_the_paper_are_for_batches_of_256(name: str, rate: float) -> None:
    """And those of a layer over a paper's file have that file's base."""
    path = PAPER / f"{name}.yaml"
    below, above = (yaml.safe_load((PAPER / f"{file}.yaml").read_text()) for file in (LAYERS.get(path, name), name))
    settings = below["model"]["init_args"] | above["model"]["init_args"]
    assert settings["base_batch_size"] == 256
    assert settings["optimizer"]["init_args"]["lr"] * settings["batch_size"] / 256 == rate


class InThisProcess:
    """A run of a comparison without the imports of a process of its own."""

    ended = True

    def __init__(self, run: GridRun, jobs: int) -> None:
        self.run = run
        main(["fit", *run.arguments, f"--seed_everything={run.seed}", f"--run_dir={run.folder}"])

    def reason(self) -> str | None:
        return None if self.run.done else "no results"


@pytest.mark.slow
def test_the_comparison_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = " ".join(f"'{setting}'" for setting in [*TINY_FEDERATION, "--trainer.logger=false"])
    tiny = f"{tiny} --model.rounds=2 --trainer.check_val_every_n_epoch=1"
    monkeypatch.setattr("fedssl.comparison.runner._Process", InThisProcess)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "-c", str(COMPARISON), "--seeds=[0]", f"--settings={tiny}", f"--folder={tmp_path}"])
    assert stopped.value.code == 0
    assert len(list(tmp_path.glob("*-seed0/results.json"))) == 6
    table = (tmp_path / "table.md").read_text()
    assert "| progressive | BYOL |" in table
    assert "not finished" not in table


@pytest.mark.slow
@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_run_of_a_papers_comparison_is_accepted(path: Path, tmp_path: Path) -> None:
    grid = Grid(**yaml.safe_load(path.read_text()))
    for labels, arguments in grid.rows():
        accepted: list[FederatedSSL] = []
        main(["fit", *arguments, f"--run_dir={tmp_path}"], partial(Unstarted, accepted=accepted))
        assert accepted[0].settings.rounds % 6 == 0, labels
