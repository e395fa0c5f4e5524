"""Federated training as a Lightning module."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from torch.optim import SGD, AdamW

from fedssl.client.start import FedEMA
from fedssl.data.images import FederatedData, ImageData
from fedssl.server.aggregation import SCAFFOLD, PrivateMean, WeightedMean
from fedssl.server.calibration import Calibration
from fedssl.server.participation import Cohort
from fedssl.server.server import AllClientsFailedError
from fedssl.training.checkpoints import AtomicCheckpointIO, RoundCheckpoint
from fedssl.training.federated import FederatedSSL
from layerwise import EncoderSpec, LayerWise
from ssl_methods import DigitsViews
from ssl_methods.alignment import MoonAlignment

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}.*")
    for text in ("LeafSpec", "transfer_batch_to_device", "dirpath has changed", "`training_step` returned `None`")
]


@pytest.fixture
def make_module(vit_spec: EncoderSpec, methods: dict[str, Any]) -> Callable[..., FederatedSSL]:
    def make(method: str = "SimCLR", **settings: Any) -> FederatedSSL:
        defaults: dict[str, Any] = {
            "encoder": vit_spec,
            "method": methods[method],
            "augment": DigitsViews(),
            "optimizer": partial(AdamW, lr=1e-3),
            "scheme": LayerWise(),
            "rounds": 3,
            "batch_size": 4,
            "seed": 0,
        }
        return FederatedSSL(**defaults | settings)

    return make


def digits(**settings: Any) -> FederatedData:
    return FederatedData(**{"clients": 3, "train_images": 24, "seed": 0} | settings)


def trainer(rounds: int = 3, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_epochs": rounds,
    }
    return Trainer(**defaults | settings)


class Recorder(Callback):
    """Notes the report of every round."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reports.append(pl_module.last_report)
        self.metrics.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def equal_weights(a: FederatedSSL, b: FederatedSSL) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# --- rounds


def test_the_distance_between_clients_is_a_metric_of_runs_that_ask_for_it(
    make_module: Callable[..., FederatedSSL],
) -> None:
    asked, silent = (Recorder(), Recorder())
    measured, plain = make_module(measure_distance=True), make_module()
    trainer(callbacks=[asked]).fit(measured, datamodule=digits())
    trainer(callbacks=[silent]).fit(plain, datamodule=digits())
    assert all(metrics["client/distance"] > 0 for metrics in asked.metrics)
    assert all("client/distance" not in metrics for metrics in silent.metrics)
    assert equal_weights(measured, plain)


def test_global_step_is_the_number_of_rounds(make_module: Callable[..., FederatedSSL]) -> None:
    module, recorder = make_module(), Recorder()
    run = trainer(callbacks=[recorder])
    run.fit(module, datamodule=digits())
    assert run.global_step == 3
    assert module.federation is not None
    assert module.federation.server.done
    assert [report.stage for report in recorder.reports] == [0, 1, 2]
    assert [metrics["round"] for metrics in recorder.metrics] == [0, 1, 2]
    for metrics, report in zip(recorder.metrics, recorder.reports, strict=True):
        assert metrics["client/loss"] == pytest.approx(report.loss)
        assert metrics["client/participants"] == 3
        assert metrics["client/dropped"] == metrics["client/failed"] == 0
        assert metrics["cost/down_bytes"] == report.down_bytes
        assert metrics["cost/up_bytes"] == report.up_bytes
        assert metrics["cost/macs"] == report.macs
        assert metrics["cost/peak_activation_bytes"] == report.activation_bytes
        assert "server/calibration_loss" not in metrics


def test_lightning_changes_nothing_about_the_federation(
    make_module: Callable[..., FederatedSSL], make_world: Callable[..., Any]
) -> None:
    module = make_module("MoCoV3", optimizer=partial(SGD, lr=0.01))
    data = digits()
    trainer().fit(module, datamodule=data)
    world = make_world(method="MoCoV3", sizes=data.datasets.sizes)
    world.clients = data.datasets.clients
    world.run(3)
    own = world.server.model
    assert all(
        torch.equal(module.model.read([name])[name][key], tensor)
        for name, tensors in own.read(own.parts).items()
        for key, tensor in tensors.items()
    )


def test_everything_logged_has_the_right_name(make_module: Callable[..., FederatedSSL]) -> None:
    module = make_module(calibration=Calibration(batch_size=4))
    recorder = Recorder()
    run = trainer(callbacks=[recorder], limit_val_batches=1.0, check_val_every_n_epoch=3)
    run.fit(module, datamodule=digits(auxiliary_fraction=0.25))
    assert recorder.metrics[0]["server/calibration_loss"] > 0
    assert {"eval/knn_top1", "eval/feature_std", "eval/rankme"} <= run.callback_metrics.keys()
    assert run.callback_metrics["eval/knn_top1"] > 20


def test_an_empty_round_is_a_step_too(
    make_module: Callable[..., FederatedSSL], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedssl.server.participation.Participation.draw", lambda *_: Cohort((), (0, 1, 2)))
    module, fresh, recorder = make_module(), make_module(), Recorder()
    run = trainer(callbacks=[recorder])
    with pytest.raises(AllClientsFailedError, match="no client was trained in any of 3 rounds"):
        run.fit(module, datamodule=digits())
    assert run.global_step == 3
    assert equal_weights(module, fresh)
    assert recorder.reports
    assert all(math.isnan(report.loss) for report in recorder.reports)
    assert all("client/loss" not in metrics for metrics in recorder.metrics)
    assert recorder.metrics[0]["client/dropped"] == 3


def test_all_clients_failing_ends_the_fit(make_module: Callable[..., FederatedSSL]) -> None:
    diverging = make_module(optimizer=partial(SGD, lr=0.1, weight_decay=1e38))
    with pytest.raises(AllClientsFailedError, match="round 0: no usable update; clients 0, 1, 2: "):
        trainer().fit(diverging, datamodule=digits())


def test_a_private_run_does_not_stop_by_what_clients_gave(make_module: Callable[..., FederatedSSL]) -> None:
    pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")
    curious = trainer(callbacks=[EarlyStopping("client/loss")])
    with pytest.raises(ValueError, match="EarlyStopping monitors client/loss, which is not private"):
        curious.fit(make_module(aggregation=PrivateMean(1.0, 2.0)), datamodule=digits())


def test_a_private_checkpoint_is_its_owners_alone(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="the extra fedssl[privacy] is not installed")
    for rule, private in ((PrivateMean(1.0, 2.0), True), (WeightedMean(), False)):
        path = tmp_path / f"{private}.ckpt"
        AtomicCheckpointIO().save_checkpoint({"server": {"aggregation": rule.state_dict()}}, path)
        assert (path.stat().st_mode & 0o077 == 0) == private


def test_a_federation_without_two_images_a_client_is_refused(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="no client has two images to contrast"):
        trainer().fit(make_module(), datamodule=digits(train_images=3))


def test_clients_are_announced(make_module: Callable[..., FederatedSSL]) -> None:
    module, data, seen = make_module(participation=2), digits(), []
    data.setup("fit")
    module.prepare(data)
    assert module.federation is not None
    module.federation.on_client = lambda cohort, client: seen.append((cohort.participants.index(client), client))
    trainer().fit(module, datamodule=data)
    assert [position for position, _ in seen] == [0, 1] * 3


def test_fast_dev_run_is_one_round(make_module: Callable[..., FederatedSSL]) -> None:
    run = trainer(fast_dev_run=True)
    run.fit(make_module(), datamodule=digits())
    assert run.global_step == 1


def test_mixed_precision_trains_float32_weights(make_module: Callable[..., FederatedSSL]) -> None:
    exact, mixed = make_module(), make_module()
    trainer().fit(exact, datamodule=digits())
    trainer(precision="bf16-mixed").fit(mixed, datamodule=digits())
    assert {t.dtype for t in mixed.state_dict().values()} == {torch.float32, torch.int64}
    assert not equal_weights(exact, mixed)
    assert exact.last_report is not None
    assert mixed.last_report is not None
    assert mixed.last_report.loss == pytest.approx(exact.last_report.loss, abs=0.1)


def test_seed_may_come_from_lightning(
    make_module: Callable[..., FederatedSSL], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    assert equal_weights(make_module(seed=None), make_module(seed=0))
    assert not equal_weights(make_module(seed=1), make_module(seed=0))


# --- what is refused


def test_epochs_must_be_rounds(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_epochs 5 differs from rounds 3: .*set model\.rounds"):
        trainer(5).fit(make_module(), datamodule=digits())


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_other_precisions_are_refused(
    precision: str, make_module: Callable[..., FederatedSSL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning itself turns 16-mixed into bf16-mixed on a CPU, hence the patch."""
    monkeypatch.setattr(Trainer, "precision", property(lambda self: precision))
    message = rf"trainer\.precision {precision} is not supported: use 32-true or bf16-mixed"
    with pytest.raises(ValueError, match=message):
        trainer().fit(make_module(), datamodule=digits())


def test_images_must_fit_the_encoder(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="digits images have 16 pixels a side, the encoder expects 8: set"):
        trainer().fit(make_module(), datamodule=digits(image_size=16))
    with pytest.raises(ValueError, match=r"digits images have 3 channels, the encoder expects 1: set --data\."):
        trainer().fit(make_module(), datamodule=digits(channels=3))


def test_images_are_compared_before_an_evaluation_too(make_module: Callable[..., FederatedSSL]) -> None:
    run = trainer(limit_val_batches=1.0)
    with pytest.raises(ValueError, match="digits images have 16 pixels a side"):
        run.validate(make_module(), datamodule=digits(image_size=16), verbose=False)


def test_pooled_images_are_no_federation(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="FederatedSSL needs FederatedData or FederatedText, got ImageData"):
        trainer().fit(make_module(), datamodule=ImageData(train_images=24, seed=0))


def test_calibration_needs_images_before_training_starts(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="calibration needs auxiliary images"):
        trainer().fit(make_module(calibration=Calibration()), datamodule=digits())


def test_participation_must_fit_the_clients(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="participation 4 clients a round: allowed are 1 to 3"):
        trainer().fit(make_module(participation=4), datamodule=digits())


def test_corrections_of_other_clients_are_refused(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match=r"SCAFFOLD needs clients with SGD.*got AdamW: set --model\.optimizer"):
        make_module(aggregation=SCAFFOLD())
    with pytest.raises(ValueError, match="SCAFFOLD corrects gradients for clients that start from the global weights"):
        make_module("BYOL", aggregation=SCAFFOLD(), optimizer=partial(SGD, lr=0.1), start=FedEMA())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": 0}, "local_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least"),
        ({"proximal": -1.0}, "proximal must be from 0 to 1e.06, got -1.0"),
        ({"dropout": 1.0}, "dropout must be a probability"),
        ({"rounds": 4}, "rounds 4 cannot be shared equally by 3 stages"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
    ],
)
def test_settings_are_checked_at_once(
    settings: dict[str, Any], message: str, make_module: Callable[..., FederatedSSL]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**settings)


# --- checkpoints


def test_checkpoint_loads_without_running_code(make_module: Callable[..., FederatedSSL], tmp_path: Path) -> None:
    module, run = make_module("BYOL", alignment=MoonAlignment()), trainer()
    run.fit(module, datamodule=digits())
    module.model.encoder.depth = 2
    run.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert checkpoint["global_step"] == checkpoint["server"]["round"] == 3
    assert checkpoint["depth"] == 2
    assert sorted(checkpoint["local"]["client_states"]) == [0, 1, 2]
    assert not [key for key in checkpoint["state_dict"] if "target" in key]
    other = make_module("BYOL")
    other.load_state_dict(checkpoint["state_dict"])
    other.on_load_checkpoint(checkpoint)
    assert other.encoder.depth == 2
    assert equal_weights(module, other)


@pytest.mark.parametrize("epoch", [0, 2])
def test_training_resumes_bit_for_bit_from_a_checkpoint(
    epoch: int, make_module: Callable[..., FederatedSSL], tmp_path: Path
) -> None:
    settings = {"rounds": 6, "alignment": MoonAlignment(), "server_optimizer": partial(SGD, lr=0.7, momentum=0.9)}

    class Keep(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == epoch + 1:
                shutil.copyfile(tmp_path / f"{epoch:05d}.ckpt", tmp_path / "kept")

    def run(name: str, *callbacks: Callback) -> Trainer:
        return trainer(
            6,
            enable_checkpointing=True,
            callbacks=[RoundCheckpoint(tmp_path / name), *callbacks],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=tmp_path,
        )

    whole, resumed = make_module(**settings), make_module(**settings)
    run("", Keep()).fit(whole, datamodule=digits())
    again = run("resumed")
    again.fit(resumed, datamodule=digits(), ckpt_path=str(tmp_path / "kept"))
    assert again.global_step == 6
    assert equal_weights(whole, resumed)
    assert repr(whole.last_report) == repr(resumed.last_report)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["00004.ckpt", "00005.ckpt"]


def test_a_checkpoint_of_another_run_is_refused(make_module: Callable[..., FederatedSSL], tmp_path: Path) -> None:
    run = trainer()
    run.fit(make_module(), datamodule=digits())
    run.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(ValueError, match="the checkpoint was made with clients 3, this run has 2"):
        trainer().fit(make_module(), datamodule=digits(clients=2), ckpt_path=tmp_path / "end.ckpt")


def test_summary_and_random_twin(make_module: Callable[..., FederatedSSL]) -> None:
    module, fresh = make_module(), make_module()
    assert module.summary == {"scheme": "layer-wise", "method": "SimCLR"}
    run = trainer()
    run.fit(module, datamodule=digits())
    module.model.encoder.depth = 2
    (twin,) = module.untrained().values()
    images = torch.rand(2, 1, 8, 8)
    fresh.encoder.depth = 2
    with torch.no_grad():
        assert torch.equal(twin(images), fresh.encoder(images))
        assert not torch.equal(twin(images), module.encoder(images))


def test_images_are_read_from_files(make_module: Callable[..., FederatedSSL], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (14, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / ("test" if i > 11 else "train") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    modules = []
    for in_memory in (True, False):
        data = digits(
            dataset="folder",
            root=str(tmp_path),
            image_size=8,
            channels=1,
            train_images=None,
            in_memory=in_memory,
        )
        modules.append(make_module())
        trainer().fit(modules[-1], datamodule=data)
        assert data.pool.in_memory is in_memory
    assert equal_weights(*modules)
