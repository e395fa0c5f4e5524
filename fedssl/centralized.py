"""The same objective without a federation: plain Lightning training on the pooled images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedssl.model import MethodFactory
from fedssl.pretraining import Pretraining
from fedssl.seeding import derive_seed, torch_generator
from layerwise import EncoderSpec
from linear_eval import EvaluationSettings, FinetuneSettings
from ssl_methods import OptimizerFactory, TwoViews


class CentralizedSSL(Pretraining):
    """Trains the whole encoder on all images in one place; the yardstick of the federated schemes.

    Args:
        encoder: The encoder to build.
        method: The self-supervised objective: SimCLR, BYOL or MoCoV3.
        augment: Makes two views of a batch of images.
        optimizer: The optimizer.
        evaluation: Neighbours and probe.
        finetuning: Fine-tunes a copy in the final evaluation; ``None`` does not.
        seed: Seed of every random choice; ``None`` takes the run's.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        method: MethodFactory,
        augment: TwoViews,
        optimizer: OptimizerFactory,
        evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
        finetuning: FinetuneSettings | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(encoder, method, augment, optimizer, evaluation, finetuning, seed)
        self.method = self.model.method
        self.method.start()

    def setup(self, stage: str) -> None:
        """Checks that images and encoder fit."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit":
            self.prepare(data)
        else:
            self.check_images(data.eval_train)

    def on_train_epoch_start(self) -> None:
        """Every epoch has its own random numbers, so that a resumed run continues as it would have."""
        self.method.generator = torch_generator(self.seed, "centralized augment", self.current_epoch)
        torch.manual_seed(derive_seed(self.seed, "centralized", self.current_epoch))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        """The method's loss."""
        loss = self.method.training_step(batch, batch_idx)
        if loss is not None:
            self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch))
            if not torch.isfinite(loss):
                raise ArithmeticError(f"loss {loss.item()} in step {self.global_step}")
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer steps, then momentum targets follow."""
        super().optimizer_step(*args, **kwargs)
        self.method.after_step()

    def configure_optimizers(self) -> Optimizer:
        """The method's optimizer."""
        optimizer = self.method.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        return optimizer
