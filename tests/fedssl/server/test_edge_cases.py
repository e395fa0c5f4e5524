"""Edge cases that once went wrong, each a test of its own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch.optim import SGD

from fedssl.client.training_loop import shuffled_batches
from fedssl.data.datasets import FileImages
from fedssl.data.images import FederatedData
from fedssl.protocol.messages import Failure
from fedssl.runs.run_folder import latest_run_folder
from fedssl.server.calibration import Calibration
from fedssl.server.participation import cohort_size
from fedssl.server.server import AllClientsFailedError
from fedssl.training.federated import FederatedSSL
from fedssl.training.tracking import MetricsCSV
from fedssl.utils.files import replace_folder
from layerwise import LayerWise
from ssl_methods import DigitsViews


@pytest.fixture
def make_module(vit_spec: Any, methods: dict[str, Any]) -> Callable[..., FederatedSSL]:
    def make(**settings: Any) -> FederatedSSL:
        defaults: dict[str, Any] = {"rounds": 3, "batch_size": 4, "seed": 0}
        optimizer = partial(SGD, lr=0.01)
        return FederatedSSL(vit_spec, methods["SimCLR"], DigitsViews(), optimizer, LayerWise(), **defaults | settings)

    return make


def fit(module: FederatedSSL, data: FederatedData) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        max_epochs=3,
    )
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize("number", [0, 1])  # belongs to test_loop.py::test_files_give_the_batches_of_memory
def test_files_without_a_batch(number: int, tmp_path: Path) -> None:
    paths = [tmp_path / "0.png"][:number]
    for path in paths:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    files = FileImages("files", paths, torch.zeros(number), ["a"], 8, 1)
    assert list(shuffled_batches(files, 4, torch.Generator())) == []


@pytest.mark.parametrize(("fraction", "clients", "size"), [(0.07, 100, 7), (0.14, 50, 7), (0.55, 100, 55)])
def test_an_exact_fraction_is_not_rounded_up(fraction: float, clients: int, size: int) -> None:
    assert cohort_size(fraction, clients) == size


def test_a_batch_of_one_is_refused_at_once(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        make_module(batch_size=1)
    with pytest.raises(ValueError, match=r"calibration\.batch_size must be at least 2, got 1"):
        Calibration(batch_size=1)


def test_auxiliary_images_must_fit_the_encoder(make_module: Callable[..., FederatedSSL], tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "train" / "a" / f"{i}.png")
    data = FederatedData(
        clients=3, train_images=24, seed=0, auxiliary_dataset="folder", root=str(tmp_path), image_size=8
    )
    with pytest.raises(ValueError, match="folder images have 3 channels, the encoder expects 1"):
        fit(make_module(calibration=Calibration(batch_size=4)), data)


@pytest.mark.parametrize("names", [("0003", "0003_backup"), ("9999", "10000")])
def test_the_latest_run_has_the_highest_number(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "0.ckpt").write_bytes(b"")
    latest = latest_run_folder(tmp_path)
    assert latest is not None
    assert latest.name == {"0003": "0003", "9999": "10000"}[names[0]]


def test_a_change_of_an_earlier_row_is_saved(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path / "m.csv")
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    logger.log_metrics({"a": 1.5}, 0)
    logger.log_metrics({"a": 2.0}, 1)
    logger.save()
    assert (tmp_path / "m.csv").read_text().splitlines() == ["step,a", "0,1.5", "1,2.0"]


def test_a_state_is_a_snapshot(make_world: Callable[..., Any]) -> None:
    world = make_world()
    world.run(1)
    state = world.server.state_dict()
    before = repr(state)
    world.run(2)
    assert repr(state) == before


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fresh", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "fresh":
            raise OSError(5, "I/O error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="I/O error"):
        replace_folder(tmp_path / "fresh", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "target"


def test_a_module_is_not_trained_beyond_its_last_round(make_module: Callable[..., FederatedSSL]) -> None:
    module = make_module()
    fit(module, FederatedData(clients=3, train_images=24, seed=0))
    fit(module, FederatedData(clients=2, train_images=24, seed=0))
    assert module.federation is not None
    assert (module.federation.server.participation.num_clients, module.federation.server.round) == (2, 3)


def test_a_round_of_clients_with_too_few_images_is_an_empty_one(make_world: Callable[..., Any]) -> None:
    world = make_world()
    before = world.weights()
    world.server.begin_round()
    report = world.server.end_round([Failure(0, "1 images are too few to contrast", skipped=True)])
    assert (report.trained, len(report.failures), world.server.round) == ((), 1, 1)
    after = world.weights()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": partial(SGD, lr=0.0)}, "optimizer.lr must be above 0 and at most 1000, got 0.0"),
        ({"optimizer": partial(SGD, lr=float("nan"))}, r"optimizer.* nan"),
        ({"optimizer": partial(SGD, lr=1e9)}, "optimizer.lr must be above 0 and at most 1000"),
        ({"server_optimizer": partial(SGD, lr=0.0)}, "server_optimizer.lr must be above 0"),
        ({"server_optimizer": partial(SGD, lr=1.0, momentum=5.0)}, "server_optimizer.momentum must be at least 0 and"),
        ({"server_optimizer": partial(SGD, lr=1.0, weight_decay=float("inf"))}, "weight_decay must be finite"),
        (
            {"server_optimizer": partial(SGD, lr=1.0, dampening=float("nan"))},
            "server_optimizer.dampening must be finite",
        ),
        ({"memory_budget": []}, "memory_budget must be .*: got an empty list"),
        ({"proximal": float("nan")}, "proximal must be from 0 to 1e.06, got nan"),
        ({"batch_size": None}, "batch_size must be at least 2, got None"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings: Any, message: str, vit_spec: Any, methods: Any) -> None:
    given = {"optimizer": partial(SGD, lr=0.1), "rounds": 3, "seed": 0} | settings
    optimizer = given.pop("optimizer")
    with pytest.raises(ValueError, match=message):
        FederatedSSL(vit_spec, methods["SimCLR"], DigitsViews(), optimizer, LayerWise(), **given)


def test_a_run_in_which_nobody_trained_has_no_results(
    make_module: Callable[..., FederatedSSL], caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module(dropout=0.9999)
    with pytest.raises(AllClientsFailedError, match=r"no client was trained in any of 3 rounds: .* model\.dropout \(0"):
        fit(module, FederatedData(clients=3, train_images=24, seed=0))
    assert [text for text in caplog.messages if "nobody was trained; dropped out: 3" in text] != []
