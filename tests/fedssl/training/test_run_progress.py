"""A run that ends before its last stage says so, everywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_runs import TINY, TINY_FEDERATION

from fedssl.__main__ import main
from fedssl.comparison.grid import GridRun
from fedssl.comparison.run import read_run
from fedssl.runs.report.record import RunRecord
from fedssl.runs.report.run_report import write_run_report
from fedssl.training.endings import numbered, shortfall

FIT = ["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", "--trainer.check_val_every_n_epoch=1"]
CENTRAL = ["fit", "-c", "centralized.yaml", *TINY, "--trainer.logger=false", "--trainer.max_epochs=2"]
STOPPER = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=eval/knn_top1"]
STOPPER += ["--trainer.callbacks.mode=max", "--trainer.callbacks.stopping_threshold=0.0"]


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer-wise run of two stages with two rounds each that EarlyStopping ends after the first."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    main([*FIT, *STOPPER, f"--run_dir={folder}"])
    return folder


def test_an_early_stop_is_in_the_results(stopped: Path) -> None:
    found = results_of(stopped)
    assert (found["finished"], found["rounds_done"], found["rounds_planned"]) == (False, 1, 4)
    assert (found["stages_incomplete"], found["stages_untrained"]) == ([1], [2])
    assert (found["blocks_trained"], found["blocks_planned"]) == (1, 2)
    assert found["reason"] == "EarlyStopping on eval/knn_top1 ended it"


def test_an_early_stop_is_the_headline_of_the_report(stopped: Path) -> None:
    text = (stopped / "report.html").read_text()
    assert "<h1>Layer-wise SimCLR (unfinished)</h1>" in text
    assert '<p class="summary">UNFINISHED: 1 of 4 rounds; stage 1 not completed; stage 2 never trained; ' in text
    assert "1 of 4 rounds of 1 local epochs" in text


def test_an_exported_encoder_says_how_far_it_came(stopped: Path) -> None:
    noted = json.loads((stopped / "encoder" / "config.json").read_text())["training"]
    assert (noted["finished"], noted["blocks_trained"], noted["blocks_present"]) == (False, 1, 1)
    model = timm.create_model(f"local-dir:{stopped / 'encoder'}", pretrained=True, num_classes=0)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 16)


def test_a_comparison_takes_it_for_unfinished(stopped: Path) -> None:
    run = read_run(stopped)
    assert run.results == {}
    assert run.failure.startswith("1 of 4 rounds; stage 1 not completed; stage 2 never trained")


@pytest.mark.report
@pytest.mark.slow
def test_a_resumed_run_that_comes_to_its_end_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    main([*FIT, "--trainer.max_steps=3", f"--run_dir={folder}"])
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == (
        "UNFINISHED: 3 of 4 rounds; stage 2 not completed; 2 of 2 blocks trained; trainer.max_steps 3 was reached"
    )
    main([*FIT, f"--run_dir={folder}", "--ckpt_path=last"])
    found = results_of(folder)
    assert (found["finished"], found["rounds_done"], found["rounds_planned"]) == (True, 4, 4)
    assert "stages_untrained" not in found
    assert "UNFINISHED" not in capsys.readouterr().out
    assert "UNFINISHED" not in (folder / "report.html").read_text()
    assert json.loads((folder / "encoder" / "config.json").read_text())["training"]["finished"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--trainer.max_time=00:00:00:00", "nothing was trained: trainer.max_time was over"),
        ("--trainer.max_steps=0", "trainer.max_steps 0 trains nothing"),
        pytest.param(
            "--trainer.limit_train_batches=0",
            "trainer.limit_train_batches 0 trains nothing",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_trains_nothing_is_an_error(extra: str, said: str, tmp_path: Path) -> None:
    for command in (FIT, CENTRAL):
        folder = tmp_path / command[2]
        with pytest.raises(SystemExit, match=said):
            main([*command, extra, f"--run_dir={folder}"])
        assert not (folder / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--trainer.max_steps=1", "0 of 2 epochs; trainer.max_steps 1 was reached"),
        (
            "--trainer.limit_train_batches=1",
            "2 of 2 epochs; trainer.limit_train_batches 1 left out images of every epoch",
        ),
    ],
)
def test_centralised_training_counts_epochs(extra: str, said: str, tmp_path: Path) -> None:
    main([*CENTRAL, "--data.batch_size=20", extra, f"--run_dir={tmp_path / 'run'}"])
    assert shortfall(results_of(tmp_path / "run")) == said


def test_results_of_older_versions_count_as_finished(stopped: Path, tmp_path: Path) -> None:
    assert shortfall({"rounds": 4}) == ""
    older = {key: value for key, value in results_of(stopped).items() if "_done" not in key and key != "finished"}
    for name in ("config.yaml", "metrics.csv", "details.npz"):
        (tmp_path / name).write_bytes((stopped / name).read_bytes())
    (tmp_path / "results.json").write_text(json.dumps(older))
    write_run_report(RunRecord.read(tmp_path))
    assert not read_run(tmp_path).failure


def test_a_comparison_resumes_what_was_cut_short(stopped: Path, tmp_path: Path) -> None:
    assert not GridRun("cut short", [], 0, stopped).done
    assert not GridRun("not begun", [], 0, tmp_path).done
    (tmp_path / "results.json").write_text('{"finished": true}')
    assert GridRun("finished", [], 0, tmp_path).done


@pytest.mark.slow
def test_an_encoder_that_timm_cannot_build_costs_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resnet = ["--model.encoder.name=resnet18", "--model.encoder.position=learned", "--trainer.max_steps=1"]
    resnet += ["--model.encoder.options={channels: [8, 8, 16, 16]}"]
    main([*FIT, *resnet, f"--run_dir={tmp_path / 'run'}"])
    assert "no encoder: timm cannot build resnet18 with 1 of 4 stages" in capsys.readouterr().err
    assert results_of(tmp_path / "run")["stages_untrained"] == [2, 3, 4]


def test_numbers_are_words() -> None:
    assert (numbered("stage", [2]), numbered("stage", [3, 4, 5])) == ("stage 2", "stages 3 to 5")
