"""Runs whose stages end early, devices and start rules, as a Lightning module with checkpoints."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_states import assert_same
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import SGD

from fedssl.client.start import FedEMA, FedU
from fedssl.data.images import FederatedData
from fedssl.devices import Deadline, DeviceClasses
from fedssl.runs.results import collect_results
from fedssl.server.selection import RoundRobinSelector, SmartFreezeSelector
from fedssl.training.checkpoints import AtomicCheckpointIO, RoundCheckpoint
from fedssl.training.federated import FederatedSSL
from layerwise import BlockPerturbation, EncoderSpec, LayerWise, PaceReading
from ssl_methods import DigitsViews

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}.*")
    for text in ("LeafSpec", "transfer_batch_to_device", "dirpath has changed", "exists and is not empty")
]
FLEET = [{"count": 2, "macs_per_second": 1e6}, {"count": 1, "memory": "1MiB", "availability": 0.8}]


class Stub(BlockPerturbation):
    """Freezes every block after two rounds."""

    def begin_stage(self, tensors: Any, generator: torch.Generator) -> None:
        self._converged = 0

    def observe(self, tensors: Any) -> PaceReading:
        self._converged += 1
        return PaceReading(0.25, 0.5, -0.125, self._converged, self._converged == 2)


def quick() -> BlockPerturbation:
    return BlockPerturbation(window=2, smoothing=2, patience=1, slope_threshold=0.6)


@pytest.fixture
def make_module(vit_spec: EncoderSpec, methods: dict[str, Any]) -> Callable[..., FederatedSSL]:
    def make(method: str = "SimCLR", **settings: Any) -> FederatedSSL:
        defaults: dict[str, Any] = {
            "encoder": vit_spec,
            "method": methods[method],
            "augment": DigitsViews(),
            "optimizer": partial(SGD, lr=0.02),
            "scheme": LayerWise(),
            "rounds": 12,
            "batch_size": 4,
            "seed": 0,
        }
        return FederatedSSL(**defaults | settings)

    return make


def digits() -> FederatedData:
    return FederatedData(clients=3, train_images=24, seed=0)


def trainer(folder: Path | None = None, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_epochs": 12,
        "enable_checkpointing": folder is not None,
        "callbacks": [*callbacks, *([RoundCheckpoint(folder)] if folder else [])],
        "plugins": [AtomicCheckpointIO()],
    }
    return Trainer(**defaults | quiet | settings)


class Keep(Callback):
    """Keeps the checkpoint of one round, and counts rounds and validations."""

    def __init__(self, folder: Path, epoch: int) -> None:
        self.folder, self.epoch = folder, epoch
        self.validated: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch + 1:
            shutil.copyfile(self.folder / f"{self.epoch:05d}.ckpt", self.folder / "kept")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(trainer.current_epoch)


# --- the end


@pytest.mark.parametrize("interval", [1, 4, 5, 100])
def test_a_run_ends_early_with_a_last_validation(
    interval: int, make_module: Callable[..., FederatedSSL], tmp_path: Path
) -> None:
    """Six rounds of twelve at most; the last one is validated whatever the interval."""
    module, watch = make_module(pace=Stub()), Keep(tmp_path, 99)
    run = trainer(tmp_path, watch, limit_val_batches=1.0, check_val_every_n_epoch=interval)
    run.fit(module, datamodule=digits())
    assert module.federation is not None
    assert run.global_step == module.federation.server.round == 6
    assert module.federation.server.done
    assert module.federation.server.stage_rounds == [2, 2, 2]
    assert watch.validated == [*range(interval - 1, 5, interval), 5]
    assert "eval/knn_top1" in run.callback_metrics
    assert max(path.name for path in tmp_path.glob("*.ckpt")) == "00005.ckpt"
    results = collect_results(module, 1.0)
    assert (results["rounds"], results["stage_rounds"]) == (6, [2, 2, 2])


def test_a_full_run_is_validated_by_its_interval_alone(
    make_module: Callable[..., FederatedSSL], tmp_path: Path
) -> None:
    module, watch = make_module(rounds=3), Keep(tmp_path, 99)
    trainer(None, watch, limit_val_batches=1.0, check_val_every_n_epoch=2, max_epochs=3).fit(
        module, datamodule=digits()
    )
    assert watch.validated == [1]


def test_a_run_that_ended_early_does_not_go_on_when_resumed(
    make_module: Callable[..., FederatedSSL], tmp_path: Path
) -> None:
    whole, resumed = make_module(pace=Stub()), make_module(pace=Stub())
    trainer(tmp_path).fit(whole, datamodule=digits())
    run = trainer()
    run.fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "00005.ckpt")
    assert resumed.federation is not None
    assert run.global_step == resumed.federation.server.round == 6
    assert_same(whole.state_dict(), resumed.state_dict())


def test_what_the_controller_saw_is_logged(make_module: Callable[..., FederatedSSL]) -> None:
    seen: list[dict[str, float]] = []

    class Note(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            metrics = trainer.callback_metrics
            seen.append({key: float(value) for key, value in metrics.items() if key.startswith("pace/")})

    trainer(None, Note()).fit(make_module(pace=Stub()), datamodule=digits())
    known = {"pace/perturbation": 0.25, "pace/smoothed": 0.5, "pace/slope": -0.125}
    assert seen == [known | {"pace/flat_rounds": 1 + i % 2, "pace/freeze": i % 2} for i in range(6)]


# --- resume


VARIANTS: dict[str, dict[str, Any]] = {
    "pace": {"pace": quick},
    "FedEMA": {"method": "BYOL", "pace": quick, "start": FedEMA},
    "FedU": {"method": "BYOL", "start": partial(FedU, 1e-3), "selector": RoundRobinSelector, "participation": 2},
    "SmartFreeze": {
        "method": "Supervised10",
        "pace": quick,
        "selector": SmartFreezeSelector,
        "participation": 2,
        "devices": partial(DeviceClasses, FLEET),
        "deadline": partial(Deadline, 1.0, "send_finished_layers"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumes_bit_for_bit_in_the_middle_of_a_stage(
    variant: str, make_module: Callable[..., FederatedSSL], methods: dict[str, Any], tmp_path: Path
) -> None:
    """After the second round of the second stage, which began where the first one ended."""
    methods |= {"Supervised10": partial(methods["Supervised"].func, num_classes=10)}
    settings = VARIANTS[variant]

    def module() -> FederatedSSL:
        made = {key: value() if callable(value) else value for key, value in settings.items()}
        return make_module(**{"rounds": 24} | made)

    whole = module()
    trainer(tmp_path / "first", max_epochs=24).fit(whole, datamodule=digits())
    assert whole.federation is not None
    assert (whole.federation.server.stage_rounds[0] < 8) == ("pace" in settings)
    epoch = whole.federation.server.stage_rounds[0] + 1
    again, resumed = module(), module()
    trainer(tmp_path / "again", Keep(tmp_path / "again", epoch), max_epochs=24).fit(again, datamodule=digits())
    checkpoint = torch.load(tmp_path / "again" / "kept", weights_only=True)
    assert checkpoint["server"]["stage_rounds"][1] == 2
    assert checkpoint["server"]["index"] == 1
    run = trainer(tmp_path / "resumed", max_epochs=24)
    run.fit(resumed, datamodule=digits(), ckpt_path=str(tmp_path / "again" / "kept"))
    assert resumed.federation is not None
    assert run.global_step == resumed.federation.server.round == whole.federation.server.round
    assert repr(resumed.last_report) == repr(whole.last_report)
    ends = [max((tmp_path / name).glob("*.ckpt")) for name in ("first", "resumed")]
    first, second = (torch.load(end, weights_only=True) for end in ends)
    for key in ("state_dict", "optimizer_states", "global_step", "epoch", "server", "local", "depth"):
        assert_same(first[key], second[key], key)


def test_seconds_go_on_from_the_checkpoint(make_module: Callable[..., FederatedSSL], tmp_path: Path) -> None:
    stopped, resumed = make_module(rounds=3), make_module(rounds=3)
    trainer(tmp_path, limit_val_batches=1.0, max_epochs=3).fit(stopped, datamodule=digits())
    kept = torch.load(tmp_path / "00001.ckpt", weights_only=True)
    before = kept["local"]["seconds"] | kept["server"]["seconds"] | kept["seconds"]
    assert before.keys() == {"augmentation", "forward", "backward", "optimizer", "aggregation", "evaluation"}
    seen: list[dict[str, float]] = []

    class Note(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(pl_module.seconds())

    run = trainer(None, Note(), limit_val_batches=1.0, max_epochs=3)
    run.fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "00001.ckpt")
    assert seen == [before]
    assert all(resumed.seconds()[phase] > seconds for phase, seconds in before.items())
    assert set(run.callback_metrics) >= {f"time/{phase}" for phase in before}


# --- devices


def test_simulated_time_is_logged_and_reported(make_module: Callable[..., FederatedSSL]) -> None:
    module = make_module(rounds=3, devices=DeviceClasses(FLEET), deadline=Deadline(1.0))
    run = trainer(max_epochs=3)
    run.fit(module, datamodule=digits())
    assert module.federation is not None
    assert run.callback_metrics["time/simulated_seconds"] == pytest.approx(
        module.federation.server.participation.fleet.now
    )
    assert {"client/ineligible", "client/unavailable", "client/late"} <= set(run.callback_metrics)
    assert collect_results(module, 1.0)["simulated_seconds"] == round(
        module.federation.server.participation.fleet.now, 3
    )


def test_a_deadline_needs_devices(make_module: Callable[..., FederatedSSL]) -> None:
    with pytest.raises(ValueError, match="a deadline needs devices, whose speed says who is late"):
        make_module(deadline=Deadline(1.0))


def test_a_fleet_that_cannot_hold_a_stage_is_refused_before_training(make_module: Callable[..., FederatedSSL]) -> None:
    small = DeviceClasses([{"count": 3, "memory": "10KiB"}])
    with pytest.raises(ValueError, match=r"no device can hold stage 1: the one that comes nearest lacks [\d.]+ KiB"):
        trainer().fit(make_module(devices=small), datamodule=digits())
