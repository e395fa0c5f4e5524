"""Centralised training."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch.optim import AdamW

from fedssl.data.images import FederatedData, ImageData
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
    def make(method: Any = "SimCLR", seed: int = 0, lr: float = 1e-3) -> CentralizedSSL:
        factory = methods[method] if isinstance(method, str) else method
        return CentralizedSSL(vit_spec, factory, DigitsViews(), partial(AdamW, lr=lr), seed=seed)

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


@pytest.mark.parametrize("method", ["SimCLR", "BYOL"])
def test_training_resumes_bit_for_bit(method: str, make_module: Callable[..., CentralizedSSL], tmp_path: Path) -> None:
    whole, resumed = make_module(method), make_module(method)
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    fitted(whole, 3, callbacks=[RoundCheckpoint(tmp_path)], **settings)
    fitted(resumed, 3, tmp_path / "00001.ckpt", callbacks=[RoundCheckpoint(tmp_path / "resumed")], **settings)
    assert equal_weights(whole, resumed)


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
