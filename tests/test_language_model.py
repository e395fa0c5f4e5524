"""A language model from the command line: planned, pretrained, finetuned from its own weights."""

import json
from pathlib import Path

import pytest
from tiny_runs import TINY_TEXT

from fedssl.__main__ import main

CONFIG = ["-c", "pretrain_tiny_lm.yaml", *TINY_TEXT]


@pytest.mark.slow
def test_a_plan_needs_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *CONFIG, "--model.scheme=LayerWise", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert [stage["trained"] for stage in plan["stages"]] == [[0], [1]]
    assert plan["ratio"]["peak_memory_bytes"] > 1
    assert plan["convention"]["paper"]["total"]["gflops"] > 0


@pytest.mark.report
@pytest.mark.slow
def test_an_encoder_starts_another_run(tmp_path: Path) -> None:
    main(["fit", *CONFIG, f"--run_dir={tmp_path / 'first'}", "--trainer.logger=false"])
    finetuned = ["--model.scheme=LastLayers", f"--model.encoder.weights={tmp_path / 'first' / 'encoder'}"]
    main(["fit", *CONFIG, *finetuned, f"--run_dir={tmp_path / 'second'}", "--trainer.logger=false"])
    first, second = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("first", "second"))
    assert (first["scheme"], second["scheme"]) == ("end-to-end", "last-layers")
    assert second["perplexity"] < first["perplexity"]
    assert "start_perplexity" not in second, "a new head is no model to compare with"
    assert "bits a character" in (tmp_path / "second" / "report.html").read_text()
    main(["test", *CONFIG, f"--run_dir={tmp_path / 'second'}", "--ckpt_path=last"])
    assert json.loads((tmp_path / "second" / "test.json").read_text())["perplexity"] == second["perplexity"]


@pytest.mark.slow
@pytest.mark.report
def test_a_whole_model_starts_another_run(tmp_path: Path) -> None:
    main(["fit", *CONFIG, f"--run_dir={tmp_path / 'first'}", "--trainer.logger=false"])
    start = [f"--model.{part}={tmp_path / 'first' / 'encoder'}" for part in ("encoder.weights", "heads")]
    still = ["--model.optimizer.lr=1e-12", "--model.rounds=1", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", *CONFIG, *start, *still, f"--run_dir={tmp_path / 'second'}", "--trainer.logger=false"])
    first, second = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("first", "second"))
    assert second["perplexity"] == pytest.approx(first["perplexity"], rel=1e-6)
    assert second["start_perplexity"] == pytest.approx(first["perplexity"], rel=1e-6)
    assert "start weights" in (tmp_path / "second" / "report.html").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--data.context=16", "toy_dialogue is cut into pieces of 16 characters, the encoder reads 32"),
        ("--data.dataset=hamlet", "unknown text 'hamlet': known are toy_dialogue, tiny_shakespeare"),
        ("--model.encoder.heads=3", "width 16 must be a multiple of heads 3"),
        ("--model.encoder.image_size=3", "'image_size' is not accepted; did you mean --model.encoder.image_size"),
        ("--model.augment=DigitsViews", "augment DigitsViews makes views of images, text has none"),
        ("--model.encoder.weights=nowhere", "there are no pretrained weights at"),
        ("--model.heads=nowhere", "there are no pretrained weights at"),
        ("--model.method=SimCLR", "SimCLR trains on views of images: set augment"),
    ],
)
def test_mistakes_are_told_in_a_line(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["fit", *CONFIG, setting, f"--run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
