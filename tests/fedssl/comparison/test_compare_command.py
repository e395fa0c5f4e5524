"""``train.py compare`` as a user types it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import configuration, results
from tiny_runs import TINY_FEDERATION

from fedssl.__main__ import main
from fedssl.comparison import runner

MakeRun = Callable[..., Path]


def compare(*arguments: object) -> Any:
    """Exit status, or what the program says instead."""
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    return stopped.value.code


def test_runs_are_compared_from_their_folders(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("set/a", configuration(0), results(0))
    make_run("set/b", configuration(0, "LayerWise"), results(0, "layer-wise", 80.0))
    make_run("set/c", configuration(1, "LayerWise"))
    assert compare(tmp_path / "set", "--folder", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "layer-wise" in said
    assert "not finished: layer-wise, seed 1" in said
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        assert [row["scheme"] for row in csv.DictReader(file)] == ["end-to-end", "layer-wise"]
    assert "80.00" in (tmp_path / "out" / "table.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Accuracy against cost" in page
    assert not list((tmp_path / "set").glob("*.md"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare needs either -c FILE with axes, or run folders"),
        (["-c", "comparison.yaml", "--sedes=[1]"], "sedes"),
        (["-c", "comparison.yaml", "--seeds=many"], "seeds"),
        (["-c", "comparison.yaml", "--seeds=[-1]"], "seeds must be different numbers of at least 0, got [-1]"),
        (["-c", "comparison.yaml", "--jobs=0"], "jobs"),
        (["-c", "comparison.yaml", "--settings=--model.roundss=3"], "roundss"),
        (["-c", "comparison.yaml", "runs/a"], "compare needs either"),
        (["-c", "comparizon.yaml"], "no configuration"),
        (["-c", "comparison.yaml", "--reference=layerwise"], "--reference 'layerwise' is no row and no choice"),
        (["nowhere"], "there is no run in nowhere"),
        (["-c", "lw_fedssl.yaml"], "model"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    said = compare(*arguments)
    assert isinstance(said, str)
    assert message in said
    assert not list(tmp_path.iterdir())


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--help") == 0
    said = capsys.readouterr().out
    assert "RUN_DIR" in said
    assert "--seeds" in said


@pytest.mark.slow
def test_a_comparison_runs_what_is_missing_and_names_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = " ".join(f"'{setting}'" for setting in [*TINY_FEDERATION, "--trainer.logger=false"])
    axes = "{scheme: {layer-wise: -c lw_fedssl.yaml, too deep: -c lw_fedssl.yaml --model.scheme.blocks_per_stage=3}}"
    command = [f"--axes={axes}", f"--settings={tiny}", "--jobs=2", f"--folder={tmp_path}"]
    assert compare(*command) == 1
    said = capsys.readouterr()
    assert "layer-wise, seed 0: done" in said.err
    assert "not finished: too deep, seed 0: " in said.out
    assert "too_deep-seed0" in (tmp_path / "report.html").read_text()
