"""The command line as a user types it, in this process where possible."""

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from processes import train
from tiny_runs import ROOT, TINY, TINY_FEDERATION, environment

import fedssl.api
from fedssl.__main__ import USAGE, console, main
from fedssl.cli.arguments import COMPARE, find_config, prepare_arguments, run_name
from fedssl.cli.lightning import FedSSLCLI

in_ci = partial(pytest.param, marks=pytest.mark.slow)
"""A wrong value like others here, or one that a unit test refuses too."""


def fit(tmp_path: Path, *arguments: str, config: str = "lw_fedssl.yaml", tiny: list[str] = TINY_FEDERATION) -> Path:
    """A tiny run; returns its folder."""
    folder = tmp_path / "run"
    main(["fit", "-c", config, *tiny, "--trainer.logger=false", f"--run_dir={folder}", *arguments])
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the program says when it refuses these arguments."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code not in (0, None)
    return f"{stopped.value.code}{capsys.readouterr().err}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("cli"))


def test_a_run_leaves_one_folder(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "encoder",
        "results.json",
        "details.npz",
        "report.html",
    }
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["00002.ckpt", "00003.ckpt"]


def test_results_hold_quality_cost_and_origin(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["scheme"] == "layer-wise"
    assert results["method"] == "SimCLR"
    assert (results["seed"], results["rounds"], results["clients"]) == (42, 4, 3)
    for key in ("knn_top1", "linear_top1", "random_init_knn_top1", "random_init_linear_top1"):
        assert 0 <= results[key] <= 100
    for key in ("down_bytes_per_client", "up_bytes_per_client", "macs_per_client", "peak_activation_bytes"):
        assert results[key] > 0
    assert results["wall_seconds"] > 0
    assert "torch" in results["versions"]
    assert "commit" in results


def test_metrics_have_a_row_a_round(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rounds = [float(row["round"]) for row in rows if row["round"]]
    assert rounds == [0, 1, 2, 3]
    assert all(float(row["client/loss"]) > 0 for row in rows if row["round"])
    assert [float(row["stage"]) for row in rows if row["round"]] == [0, 0, 1, 1]


def test_the_encoder_folder_loads_with_timm(run: Path) -> None:
    model = timm.create_model(f"local-dir:{run / 'encoder'}", pretrained=True, num_classes=0)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 16)


@pytest.mark.slow
def test_the_saved_configuration_runs_again(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    main(["fit", "-c", str(run / "config.yaml"), f"--run_dir={again}"])
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (run, again))
    assert first["knn_top1"] == second["knn_top1"]
    assert first["linear_top1"] == second["linear_top1"]


def test_test_evaluates_a_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(run / "config.yaml")
    main(["test", "-c", config, "--ckpt_path", str(run / "checkpoints" / "00003.ckpt")])
    tested = json.loads((run / "test.json").read_text())
    fitted = json.loads((run / "results.json").read_text())
    assert tested["knn_top1"] == fitted["knn_top1"]
    assert "random init" in capsys.readouterr().out


def test_validate_reports_knn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "00003.ckpt")])
    assert "eval/knn_top1" in capsys.readouterr().out


def test_any_timm_folder_can_be_evaluated(run: Path, tmp_path: Path) -> None:
    main(["test", "-c", "evaluate.yaml", f"--model.folder={run / 'encoder'}", f"--run_dir={tmp_path / 'e'}"])
    tested = json.loads((tmp_path / "e" / "test.json").read_text())
    fitted = json.loads((run / "results.json").read_text())
    assert tested["knn_top1"] == pytest.approx(fitted["knn_top1"])
    assert tested["linear_top1"] == pytest.approx(fitted["linear_top1"])


def test_an_evaluated_encoder_must_fit_the_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-c", "evaluate.yaml", f"--model.folder={run / 'encoder'}", f"--run_dir={tmp_path / 'e'}"]
    assert "expects 16 and 1" in refused(capsys, "test", *command, "--data.image_size=20")
    assert "training_step" in refused(capsys, "fit", *command)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "method"),
    [
        ("lw_fedssl", "BYOL"),
        ("lw_fedssl", "MoCoV3"),
        ("prog_fedssl", "MoCoV3"),
        ("fedssl", "BYOL"),
        ("centralized", "BYOL"),
        ("centralized", "MoCoV3"),
    ],
)
def test_every_method_by_one_flag(config: str, method: str, tmp_path: Path) -> None:
    federated = config != "centralized"
    tiny = TINY_FEDERATION if federated else [*TINY, "--trainer.max_epochs=2", "--data.batch_size=8"]
    # The method comes first: a change of class keeps only settings that the new class has too.
    folder = fit(tmp_path, config=f"{config}.yaml", tiny=[f"--model.method={method}", *tiny])
    assert json.loads((folder / "results.json").read_text())["method"] == method


@pytest.mark.slow
def test_all_mechanisms_together(tmp_path: Path) -> None:
    folder = fit(
        tmp_path,
        "--model.calibration.epochs=1",
        "--model.alignment=MoonAlignment",
        "--model.proximal=0.1",
        "--data.auxiliary_fraction=0.2",
        "--model.server_optimizer=torch.optim.Adam",
        "--model.server_optimizer.lr=0.01",
        "--model.participation=2",
        "--model.dropout=0.3",
        "--data.partition=Dirichlet",
        "--data.partition.beta=1.0",
        "--data.partition.min_size=4",
    )
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["round"]]
    assert all(float(row["client/participants"]) + float(row["client/dropped"]) == 2 for row in rows)
    assert any(row["server/calibration_loss"] for row in rows)


@pytest.mark.parametrize("shown", [True, False])
def test_a_trial_writes_nothing_and_shows_progress_if_asked(
    shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path, "--trainer.fast_dev_run=true", f"--trainer.enable_progress_bar={str(shown).lower()}")
    assert not folder.exists()
    assert ("stage 1/2" in capsys.readouterr().err) == shown


@pytest.mark.slow
def test_wandb_runs_offline_under_one_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, f"--run_dir={folder}"])
    identity = (folder / "wandb_id").read_text()
    assert len(list(folder.glob(f"wandb/offline-run-*-{identity}"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.learning_rate=1"], "'learning_rate' is not accepted"),
        (["--unknown=1"], "unknown"),
        (["--model.scheme=LayerWisee"], "scheme: unknown class 'LayerWisee'; allowed: "),
        (["--model.method=MoCo"], "method: unknown class 'MoCo'; allowed: "),
        in_ci(
            ["--model.scheme.blocks_per_stage=[1,1,1,1,1,1,1]"],
            "7 stages are more than the encoder's 6 blocks",
        ),
        (["--model.rounds=47"], "rounds 47 cannot be shared equally by 6 stages"),
        in_ci(["--data.partition=Dirichlet", "--data.partition.beta=0"], "beta must be in (0, 1e6], got 0"),
        (["--data.clients=5000"], "5000 clients"),
        in_ci(["--data.train_images=0"], "train_images 0"),
        in_ci(["--data.eval_train_images=1439"], "eval_train_images 1439: digits has 1 to 1438"),
        in_ci(["--model.encoder.image_size=15"], "image_size 15 is not a multiple of the patch size 4"),
        (["--data.image_size=20"], "digits images have 20 pixels a side, the encoder expects 16"),
        in_ci(["--data.channels=3"], "digits images have 3 channels, the encoder expects 1"),
        in_ci(["--model.encoder.name=vit_tinny"], "nearest names"),
        (["--trainer.max_epochs=3"], "trainer.max_epochs 3 differs from model.rounds 48"),
        (["--trainer.precision=64-true"], "use 32-true or bf16-mixed"),
        (["--seed_everything=true"], "seed_everything"),
        (["--model.participation=7"], "participation 7 clients a round: allowed are 1 to 6"),
        in_ci(["--model.participation=1.5"], "as a fraction"),
        in_ci(["--model.dropout=1.0"], "dropout must be a probability"),
        (["--model.calibration.epochs=1"], "calibration needs auxiliary images"),
        in_ci(["--model.local_epochs=0"], "local_epochs must be at least 1, got 0"),
        in_ci(["--model.method.temperature=0"], "temperature must be from 0.001 to 1000, got 0"),
        (["--data.dataset=cifar11"], "did you mean cifar10"),
        (["--ckpt_path=last"], "--ckpt_path last"),
        in_ci(["--ckpt_path=absent.ckpt"], "there is no checkpoint absent.ckpt"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = ["fit", "-c", "lw_fedssl.yaml", "--trainer.logger=false", f"--run_dir={folder}", *arguments]
    said = refused(capsys, *command)
    assert message in said
    assert not folder.exists()


def test_a_configuration_before_the_subcommand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "must follow the sub-command" in refused(capsys, "-c", "lw_fedssl.yaml", "fit")


def test_an_unknown_configuration_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "lw_fedssl.yaml" in refused(capsys, "fit", "-c", "lw_fedsl.yaml")


def test_a_second_run_in_the_same_folder_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.json").read_bytes()
    said = refused(capsys, "fit", "-c", "lw_fedssl.yaml", f"--run_dir={run}")
    assert "already holds a run" in said
    assert (run / "results.json").read_bytes() == before


def test_bare_names_are_found_in_configs() -> None:
    assert find_config("lw_fedssl.yaml").resolve() == ROOT / "configs" / "lw_fedssl.yaml"
    assert prepare_arguments(["fit", "--config=lw_fedssl.yaml"])[1].startswith("--config=configs")
    assert run_name(["fit", "-c", "configs/prog_fedssl.yaml", "--model.rounds=6"]) == "prog_fedssl"


@pytest.mark.slow
def test_without_run_dir_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["fit", "-c", "fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false"])
    main(["fit", "-c", "fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", "--ckpt_path=last"])
    assert sorted(path.name for path in (tmp_path / "runs" / "fedssl").iterdir()) == ["0000", "0001"]


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    command = ["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, f"--run_dir={folder}"]
    main(command)
    before = sorted(folder.rglob("*"))
    for other in ("--model.scheme=EndToEnd", "--seed_everything=7"):
        refused(capsys, *command, other, "--ckpt_path=last")
    assert sorted(folder.rglob("*")) == before


def test_auto_says_that_a_run_is_finished(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, f"--run_dir={run}", "--ckpt_path=auto"])
    assert stopped.value.code in (0, None)
    assert f"{run} is finished: its results are in {run / 'results.json'}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "begins or resumes a fit" in refused(
        capsys, "test", "-c", "lw_fedssl.yaml", f"--run_dir={run}", "--ckpt_path=auto"
    )


def test_a_bare_command_shows_what_can_be_done() -> None:
    done = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "usage: train.py {fit,validate,test,plan,compare,embed,node}" in done.stdout
    assert prepare_arguments([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["plan", "-c", "lw_fedssl.yaml"], ["fit", "-c", "lw_fedssl.yaml", "--x=1"]])
def test_nothing_is_called_leaked_at_the_end(arguments: list[str]) -> None:
    done = train(*arguments, ok=False)
    assert "nanobind" not in done.stderr + done.stdout


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_the_module_is_the_same_command(command: str, tmp_path: Path) -> None:
    run = [sys.executable, "-X", "importtime", "-m", "fedssl", command]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=True)
    assert done.stdout == (f"{fedssl.__version__}\n" if command == "--version" else USAGE.format(program="fedssl"))
    assert "torch" not in done.stderr


def test_the_installed_command_looks_for_modules_where_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/venv/bin/fedssl", "--version"])
    monkeypatch.setattr("sys.path", ["/venv/bin", "/venv/lib"])
    console()
    assert sys.path == [str(tmp_path), "/venv/lib"]


def test_the_root_has_its_classes_and_no_others() -> None:
    assert set(fedssl.api.__all__) <= set(dir(fedssl))
    assert fedssl.FedEMA is fedssl.api.FedEMA
    with pytest.raises(ImportError, match="Fedora"):
        exec("from fedssl import Fedora")


def test_help_names_every_subcommand_without_waiting_for_torch() -> None:
    command = [sys.executable, "-X", "importtime", "train.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    listed = done.stdout.partition("sub-commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == [*FedSSLCLI.subcommands(), COMPARE, "embed", "node"]
    assert "torch" not in done.stderr


def test_help_of_a_subcommand_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "--images_per_client" in capsys.readouterr().out


def test_print_config_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", "lw_fedssl.yaml", "--print_config"])
    assert stopped.value.code == 0
    assert "weight_transfer: true" in capsys.readouterr().out


def test_null_takes_a_setting_of_a_class_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "fll.yaml", "--model.scheme.layer_budget", "null", "--print_config"])
    assert "layer_budget: null" in capsys.readouterr().out
