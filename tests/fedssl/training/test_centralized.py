"""Centralised training."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.optim import AdamW

from fedssl.data.images import FederatedData, ImageData
from fedssl.server.lr_schedule import LRSchedule
from fedssl.training.checkpoints import AtomicCheckpointIO, RoundCheckpoint
from fedssl.training.pretraining import CentralizedSSL
from layerwise import EncoderSpec
from linear_eval import FinetuneSettings
from ssl_methods import DigitsViews, StepOutput, Views

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}.*")
    for text in ("LeafSpec", "transfer_batch_to_device", "dirpath has changed", "`training_step` returned `None`")
]


@pytest.fixture
def make_module(vit_spec: EncoderSpec, methods: dict[str, Any]) -> Callable[..., CentralizedSSL]:
    def make(method: Any = "SimCLR", seed: int = 0, lr: float = 1e-3, **settings: Any) -> CentralizedSSL:
        factory = methods[method] if isinstance(method, str) else method
        return CentralizedSSL(vit_spec, factory, DigitsViews(), partial(AdamW, lr=lr), seed=seed, **settings)

    return make


def fitted(module: CentralizedSSL, epochs: int = 2, ckpt: Path | None = None, **settings: Any) -> Trainer:
    images = settings.pop("images", 22)
    data = settings.pop("data", None) or ImageData(train_images=images, batch_size=8, seed=0)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_epochs": epochs,
    }
    trainer = Trainer(**defaults | settings)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return trainer


def equal_weights(a: CentralizedSSL, b: CentralizedSSL) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("method", ["SimCLR", "BYOL", "MoCoV3"])
def test_training_follows_the_seed(method: str, make_module: Callable[..., CentralizedSSL]) -> None:
    untrained, first, again, other = (make_module(method, seed) for seed in (0, 0, 0, 1))
    runs = []
    for i, module in enumerate((first, again, other)):
        torch.manual_seed(i)
        runs.append(fitted(module))
    assert runs[0].global_step == 2 * 3
    assert equal_weights(first, again)
    assert not equal_weights(first, other)
    assert not equal_weights(first, untrained)
    assert math.isfinite(runs[0].callback_metrics["train/loss"])


def test_divided_data_are_refused(make_module: Callable[..., CentralizedSSL]) -> None:
    with pytest.raises(ValueError, match="CentralizedSSL needs ImageData, got FederatedData"):
        fitted(make_module(), data=FederatedData(train_images=22, seed=0))


def test_the_loss_falls(make_module: Callable[..., CentralizedSSL]) -> None:
    losses = [fitted(make_module(lr=0.01), epochs).callback_metrics["train/loss"] for epochs in (1, 25)]
    assert losses[1] < losses[0] - 0.3


def test_a_single_image_gives_no_step(make_module: Callable[..., CentralizedSSL]) -> None:
    module = make_module()
    fitted(module, images=1)
    assert equal_weights(module, make_module())


@pytest.mark.parametrize("method", ["SimCLR", "BYOL", "DINO", "MAE"])
def test_training_resumes_bit_for_bit(method: str, make_module: Callable[..., CentralizedSSL], tmp_path: Path) -> None:
    whole, resumed = make_module(method), make_module(method)
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    fitted(whole, 3, callbacks=[RoundCheckpoint(tmp_path)], **settings)
    fitted(resumed, 3, tmp_path / "00001.ckpt", callbacks=[RoundCheckpoint(tmp_path / "resumed")], **settings)
    assert equal_weights(whole, resumed)


def test_the_learning_rate_follows_its_schedule_and_batch_and_resumes(
    make_module: Callable[..., CentralizedSSL], tmp_path: Path
) -> None:
    """Batches of 8 halve a rate for 16; after a warm-up epoch comes half a cosine over two, which ends at a tenth."""

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    seen: list[float] = []
    schedule = LRSchedule(warm_up=1, cosine_to=0.1)
    whole, resumed = (make_module(lr=1.0e-3, base_batch_size=16, lr_schedule=schedule) for _ in range(2))
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    fitted(whole, 3, callbacks=[RoundCheckpoint(tmp_path), Rates()], **settings)
    assert seen == pytest.approx([0.25e-3] * 3 + [0.5e-3] * 3 + [0.275e-3] * 3)
    fitted(resumed, 3, tmp_path / "00001.ckpt", callbacks=[RoundCheckpoint(tmp_path / "resumed"), Rates()], **settings)
    assert seen[9:] == seen[6:9]
    assert equal_weights(whole, resumed)
    with pytest.raises(ValueError, match="epochs of the cosine"):
        fitted(make_module(lr_schedule=schedule, base_batch_size=16), 4, tmp_path / "00001.ckpt", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 2}, r"warm_up must be below the 2 epochs of trainer\.max_epochs, got 2"),
        ({"max_epochs": -1, "max_steps": 3}, r"lr_schedule goes by epochs: set trainer\.max_epochs"),
    ],
)
def test_a_schedule_must_fit_the_epochs(
    settings: dict[str, Any], message: str, make_module: Callable[..., CentralizedSSL]
) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(make_module(lr_schedule=LRSchedule(warm_up=2)), **settings)


def test_a_loss_that_is_not_finite_is_an_error(
    make_module: Callable[..., CentralizedSSL], methods: dict[str, Any]
) -> None:
    class Broken(methods["SimCLR"].func):  # type: ignore[misc]
        def step(self, hidden: Views) -> StepOutput:
            output = super().step(hidden)
            return StepOutput(output.loss * math.nan, output.projections)

    with pytest.raises(ArithmeticError, match="loss nan in step 0"):
        fitted(make_module(Broken))


def test_images_must_fit_the_encoder(make_module: Callable[..., CentralizedSSL]) -> None:
    with pytest.raises(ValueError, match="digits images have 16 pixels a side, the encoder expects 8"):
        fitted(make_module(), data=ImageData(image_size=16, seed=0))


def test_evaluation_sees_the_trained_encoder(make_module: Callable[..., CentralizedSSL]) -> None:
    module = make_module()
    trainer = fitted(module, limit_val_batches=1.0)
    metrics = trainer.callback_metrics
    assert metrics["eval/knn_top1"] > 20
    assert module.summary == {"scheme": "centralized", "method": "SimCLR"}


def test_the_final_evaluation_has_baselines(vit_spec: EncoderSpec, methods: dict[str, Any]) -> None:
    tuning = FinetuneSettings(epochs=1, warmup_epochs=0, batch_size=20)
    optimizer = partial(AdamW, lr=1e-3)
    module = CentralizedSSL(vit_spec, methods["SimCLR"], DigitsViews(), optimizer, finetuning=tuning, seed=0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, ImageData(eval_train_images=40, eval_full_bank=True, seed=0), verbose=False)
    assert list(module.reports) == ["encoder", "random_init", "raw_pixels"]
    pixels = module.reports["raw_pixels"]
    assert pixels.knn_full is not None
    assert pixels.knn_full.accuracy > 97 > pixels.knn.accuracy > 50 > module.classifiers["majority"].accuracy
    assert "rankme" not in pixels.as_dict()
    # An encoder that was never trained is its own random initialisation.
    assert module.classifiers["finetuned"] == module.classifiers["random_init_finetuned"]
    assert module.reports["encoder"].linear == module.reports["random_init"].linear
    assert trainer.callback_metrics["test/raw_pixels_knn_top1"].item() == pytest.approx(pixels.knn.accuracy)
