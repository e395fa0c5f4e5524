"""Resuming with another configuration than the checkpoint's: one line says what differs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from pytorch_lightning.plugins import TorchCheckpointIO
from tiny_runs import TINY, TINY_FEDERATION

from fedssl.__main__ import main
from fedssl.training.checkpoints import ORIGIN, read_checkpoint

pytestmark = pytest.mark.slow
RUN = ["-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false"]
ACCEPT = "--changed_settings=accept"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder after three of its four rounds."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    main(["fit", *RUN, f"--run_dir={folder}"])
    (folder / "checkpoints" / "00003.ckpt").unlink()
    (folder / "results.json").unlink()
    return folder


def resume(folder: Path, *settings: str) -> str:
    """What the program says when it ends before it trains."""
    with pytest.raises(SystemExit) as ended:
        main(["fit", *RUN, f"--run_dir={folder}", "--ckpt_path=last", *settings])
    assert not (folder / "results.json").exists()
    said = str(ended.value.code)
    assert said.startswith("error: ")
    assert said.count("\n") == 1, "one line, and where to see more"
    return said


CHANGES = {
    "--data.partition=WholeClasses": "data.partition IID then, WholeClasses now",
    "--model.aggregation=CoordinateMedian": "model.aggregation WeightedMean then, CoordinateMedian now",
    "--model.augment=NaturalViews": "model.augment DigitsViews then, NaturalViews now",
    "--model.dropout=0.2": "model.dropout 0.0 then, 0.2 now",
    "--model.method.temperature=0.9": "model.method.temperature 0.2 then, 0.9 now",
    "--model.optimizer.lr=0.5": "model.optimizer.lr 0.004 then, 0.5 now",
    "--model.participation=0.5": "model.participation 1.0 then, 0.5 now",
    "--trainer.precision=bf16-mixed": "trainer.precision none then, bf16-mixed now",
}


def test_changed_settings_are_refused_by_name(stopped: Path) -> None:
    said = resume(stopped, *CHANGES, "--data.root=elsewhere", "--more").splitlines()[0]
    assert f"the checkpoint was made with other settings: {'; '.join(CHANGES.values())}; resume with" in said
    assert said.endswith(ACCEPT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.scheme=Progressive"], "made with scheme layer-wise, this run has progressive; resume with the"),
        (["--model.rounds=6"], "made with rounds per stage [2, 2], this run has [3, 3]"),
        (["--model.method=BYOL"], "is of another network: "),
        (["--model.method.hidden_dim=32"], "is of another network: "),
        (
            ["--model.server_optimizer=torch.optim.Adam", "--model.server_optimizer.lr=0.1"],
            "made with server optimizer",
        ),
        (["--data.clients=4"], "made with clients 3, this run has 4"),
        (["--seed_everything=9"], "made with seed 42, this run has 9"),
    ],
)
def test_what_cannot_change_is_refused_though_accepted(changes: list[str], message: str, stopped: Path) -> None:
    assert message in resume(stopped, *changes, ACCEPT)


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ("--changed_settings=refuse", "model FederatedSSL then, CentralizedSSL now"),
        (ACCEPT, "made with training FederatedSSL, this run has CentralizedSSL"),
    ],
)
def test_a_centralised_run_does_not_go_on_from_a_federated_one(accept: str, message: str, stopped: Path) -> None:
    central = ["-c", "centralized.yaml", *TINY, "--trainer.logger=false", "--trainer.max_epochs=8"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *central, f"--run_dir={stopped}", "--ckpt_path=last", accept])
    assert message in str(ended.value.code)


def test_an_accepted_change_is_noted(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    main(["fit", *RUN, f"--run_dir={folder}", "--ckpt_path=last", "--model.method.temperature=0.9", ACCEPT])
    assert "resumed with another model.method.temperature: 0.2 before, 0.9 now" in capsys.readouterr().err
    noted = {"model.method.temperature": "0.2, after 3 rounds 0.9"}
    assert json.loads((folder / "results.json").read_text())["resumed_with_changes"] == noted
    text = (folder / "config.yaml").read_text()
    assert text.startswith("# resumed with another model.method.temperature: 0.2, after 3 rounds 0.9\n")
    configuration = yaml.safe_load(text)
    assert configuration["model"]["init_args"]["method"]["init_args"]["temperature"] == 0.9
    assert configuration["changed_settings"] == "refuse", "a change is accepted once"


def test_a_later_version_takes_settings_it_has_added_as_their_defaults(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "earlier"
    shutil.copytree(stopped, folder)
    forget(folder, "measure_distance")
    forget(folder, "dropout")
    said = resume(folder, "--model.dropout=0.2").splitlines()[0]
    assert "with other settings: model.dropout 0.0 then, 0.2 now; resume with" in said
    main(["fit", *RUN, f"--run_dir={folder}", "--ckpt_path=last"])
    assert (folder / "results.json").exists()


def forget(folder: Path, setting: str) -> None:
    """Make configuration and checkpoints those of a version without a setting of the model."""
    written = yaml.safe_load((folder / "config.yaml").read_text())
    del written["model"]["init_args"][setting]
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    for path in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint = read_checkpoint(path)
        del checkpoint[ORIGIN]["settings"][f"model.{setting}"]
        TorchCheckpointIO().save_checkpoint(checkpoint, path)
