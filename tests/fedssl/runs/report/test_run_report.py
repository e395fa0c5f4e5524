"""The report of a real run, in its folder and in Weights & Biases."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY_FEDERATION
from wandb_file import axes, history
from webpage import check_page

from fedssl.__main__ import main
from fedssl.runs.report.record import RunRecord, read_details
from fedssl.runs.report.run_report import write_run_report
from fedssl.runs.report.summary import describe_quality

SECTIONS = ["Quality", "Cost", "Clients", "Classes", "Representation", "Neighbours", "Layers", "Origin"]


def test_every_section_is_there_and_nothing_comes_from_elsewhere(run: Path) -> None:
    text = (run / "report.html").read_text()
    page = check_page(text)
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    assert page.headings[0] == "Layer-wise SimCLR"
    assert page.tags["svg"] == 18
    assert len(text) < 2_000_000


def test_the_summary_has_the_results(run: Path) -> None:
    text, results = (run / "report.html").read_text(), json.loads((run / "results.json").read_text())
    for key in ("knn_top1", "linear_top1", "random_init_knn_top1"):
        assert f"{results[key]:.1f} %" in text
    assert "In 4 rounds with 3 devices, one that took part received" in text
    assert "No memory limit was set." in text


@pytest.mark.report
def test_without_labels_results_and_report_say_why_there_are_no_accuracies(tmp_path: Path) -> None:
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = ["--data.dataset=folder", f"--data.root={tmp_path}", "--data.channels=1", "--data.train_images=12"]
    folder = tmp_path / "run"
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, *images, f"--run_dir={folder}", "--trainer.logger=false"])
    results, why = json.loads((folder / "results.json").read_text()), "the images of folder have no labels"
    assert results["not_evaluated"] == why
    assert not [key for key in results if "top1" in key]
    page = (folder / "report.html").read_text()
    assert f"What the representation is worth was not measured, as {why}. In 4 rounds" in page
    assert str(tmp_path) not in page
    assert "12 images read" in results["files"]["folder/train"]
    assert results["files"]["folder/train"] in page
    assert (folder / "encoder" / "model.safetensors").exists()


def test_the_page_can_be_drawn_again_from_the_folder(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "metrics.csv", "results.json", "details.npz"):
        shutil.copy(run / name, copy / name)
    write_run_report(RunRecord.read(copy))
    assert (copy / "report.html").read_text() == (run / "report.html").read_text()
    (copy / "details.npz").unlink()
    write_run_report(RunRecord.read(copy))
    headings = check_page((copy / "report.html").read_text()).headings
    assert [heading for heading in headings if heading in SECTIONS] == ["Quality", "Cost", "Origin"]


def test_details_agree_with_the_results(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    evaluation, clients = read_details(run / "details.npz")
    assert evaluation is not None
    assert clients is not None
    confusion = evaluation.encoders["encoder"].confusion
    assert 100 * confusion.trace() / confusion.sum() == pytest.approx(results["linear_top1"])
    assert evaluation.layers.tolist() == ["stem", "block 1", "block 2"]
    assert [output.shape for output in evaluation.layer_outputs] == [(359, 16)] * 3
    assert np.allclose(evaluation.encoders["encoder"].similarity.diagonal(), 1, atol=1e-4)
    assert clients.images.sum() == 60
    assert clients.images.shape == (3, 10)
    known = clients.down_bytes[clients.down_bytes > 0]
    assert known.mean() == pytest.approx(results["down_bytes_per_client"])


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished run"):
        RunRecord.read(tmp_path)


@pytest.mark.report
def test_a_report_that_fails_costs_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.delenv("FEDSSL_DEBUG", raising=False)
    monkeypatch.setattr("fedssl.runs.report.run_report.write_run_report", fails)
    folder = tmp_path / "run"
    tiny = [*TINY_FEDERATION, "--model.rounds=2", "--trainer.logger=false"]
    main(["fit", "-c", "lw_fedssl.yaml", *tiny, f"--run_dir={folder}"])
    assert "no report: no ink" in capsys.readouterr().err
    assert (folder / "results.json").exists()
    assert (folder / "encoder" / "model.safetensors").exists()


def test_wandb_draws_over_rounds_and_stages(run: Path) -> None:
    found = axes(run)
    assert all(found[f"{group}/*"] == "round" for group in ("client", "server", "cost", "eval", "test", "time"))
    assert found["stage/*"] == "stage"
    rows = history(run)
    assert [row["round"] for row in rows if "client/participants" in row] == [0, 1, 2, 3]
    assert [row["round"] for row in rows if "eval/knn_top1" in row] == [1, 3]
    assert len([row for row in rows if "test/knn_top1" in row and "test/linear_top1" in row]) == 1
    sums = [row for row in rows if "stage/gmacs" in row]
    assert [row["stage"] for row in sums] == [0, 1]
    assert [row["stage/last_round"] for row in sums] == [2, 4]


def test_wandb_has_the_figures_and_tables(run: Path) -> None:
    (media,) = [row for row in history(run) if "report/Cost/Memory/path" in row]
    pictures = [key for key in media if media[key] == "image-file"]
    assert len(pictures) == 18
    assert "report/Neighbours/Nearest images after training/_type" in pictures
    tables = [key for key in media if media[key] == "table-file"]
    assert "report/Cost/All devices in each stage/_type" in tables
    (folder,) = run.glob("wandb/offline-run-*/files")
    assert (folder / media["report/Cost/Memory/path"]).read_bytes().startswith(b"\x89PNG")


def test_a_measure_of_each_client_alone_is_a_measure() -> None:
    one = {"mean": 75.0, "worst": 70.0, "worst_client": "north", "spread": 2.5}
    by_client = {"clients": {"north": {}, "south": {}}, "summary": {"knn_top1": one}}
    found = {"not_evaluated": "data.eval_dataset is none", "by_client": by_client}
    assert describe_quality(found) == (
        "The representation was measured for each client alone, mean over 2 clients: kNN 75.0 % (worst 70.0 % "
        "at north, spread 2.5)."
    )
