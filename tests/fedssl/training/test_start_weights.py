"""Before training is the network that a run started from: with loaded weights not the random one."""

import csv
import json
from pathlib import Path

import pytest
from tiny_runs import TINY_FEDERATION

from fedssl.__main__ import main
from fedssl.comparison.rows import group_runs
from fedssl.comparison.run import read_run
from fedssl.comparison.table import as_markdown, make_tables
from fedssl.runs.report.record import RunRecord, read_details

pytestmark = pytest.mark.slow
FIT = [
    "fit",
    "-c",
    "lw_fedssl.yaml",
    *TINY_FEDERATION,
    "--model.rounds=2",
    "--trainer.logger=false",
    "--trainer.check_val_every_n_epoch=1",
]
FIGURES = ("knn_top1", "linear_top1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run from random initialisation, and one with another seed that starts from its encoder."""
    folder = tmp_path_factory.mktemp("start")
    first, second = folder / "first", folder / "second"
    main([*FIT, f"--run_dir={first}"])
    weights = [f"--model.encoder.weights={first / 'encoder'}", "--model.encoder.position=learned"]
    main([*FIT, *weights, "--seed_everything=7", f"--run_dir={second}"])
    return first, second


def test_the_start_is_what_was_loaded(runs: tuple[Path, Path]) -> None:
    first, second = (json.loads((run / "results.json").read_text()) for run in runs)
    assert not [key for key in first if key.startswith("start_")]
    assert [second[f"start_{key}"] for key in FIGURES] == [first[key] for key in FIGURES]
    assert second["random_init_linear_top1"] != second["start_linear_top1"]
    assert "start_...: the loaded weights" in second["protocol"]


def test_the_report_says_what_training_added_to_the_start(runs: tuple[Path, Path]) -> None:
    first, second = ((run / "report.html").read_text() for run in runs)
    found = json.loads((runs[1] / "results.json").read_text())
    assert "before training (random init) these were" in first
    said = f"before training (the weights it started from) these were {found['start_knn_top1']:.1f} % and"
    assert said in second
    assert f"so training changed them by {found['knn_top1'] - found['start_knn_top1']:+.1f} and" in second
    assert "<h3>Map before training</h3>" in second
    assert "<h3>Map at random initialisation</h3>" in second
    assert "<h3>Map at random initialisation</h3>" not in first
    details, _ = read_details(runs[1] / "details.npz")
    assert details is not None
    assert list(details.encoders) == ["encoder", "start", "random_init"]


def test_a_comparison_has_a_row_for_the_start(runs: tuple[Path, Path]) -> None:
    found = json.loads((runs[1] / "results.json").read_text())
    text = as_markdown(make_tables(group_runs([read_run(runs[1])])), "compare")
    for label, prefix in (("start weights", "start_"), ("random init", "random_init_")):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {label}")]
        assert f"{found[f'{prefix}knn_top1']:.2f}" in line


def test_an_older_run_with_loaded_weights_calls_no_random_network_its_start(runs: tuple[Path, Path]) -> None:
    older = RunRecord.read(runs[1])
    assert older.encoders["random_init"] == "at random initialisation"
    assert RunRecord.read(runs[0]).encoders["random_init"] == "before training"


def test_final_figures_have_keys_of_their_own(runs: tuple[Path, Path]) -> None:
    with (runs[1] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((runs[1] / "results.json").read_text())
    for key in FIGURES:
        for prefix in ("", "start_", "random_init_"):
            (measured,) = [row[f"test/{prefix}{key}"] for row in rows if row[f"test/{prefix}{key}"]]
            assert float(measured) == pytest.approx(found[prefix + key], abs=1e-4)
    online = {f"eval/{key}" for key in ("knn_top1", "knn_centred_top1", "feature_std", "rankme", "rankme_centred")}
    assert {key for key in rows[0] if key.startswith("eval/")} == online
    assert all(not row["eval/knn_top1"] for row in rows if row["test/knn_top1"])
