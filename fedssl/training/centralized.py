"""Centralised training: the same objective without a federation, on the pooled images."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from fedssl.data.clients import ClientData
from fedssl.training.pretraining import Pretraining
from fedssl.training.processes import check_intervals, check_trains
from fedssl.utils.saved_state import check_same, describe_optimizer, restoring
from fedssl.utils.seeding import derive_seed, torch_generator


class CentralizedSSL(Pretraining):
    """Training of the whole encoder on all images in one place; the yardstick of the federated schemes.

    Args:
        *args: Arguments of ``fedssl.training.pretraining.Pretraining``.
        **kwargs: Keyword arguments of ``fedssl.training.pretraining.Pretraining``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method = self.model.method
        self.method.begin_client()

    def setup(self, stage: str) -> None:
        """Check that images and encoder fit.

        Raises:
            ValueError: They do not fit, the data are divided among clients, or the run has several processes.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.trainer.world_size > 1:
            raise ValueError(
                f"CentralizedSSL runs on one device, got {self.trainer.world_size}: set trainer.devices to 1"
            )
        check_intervals(self.trainer)
        if stage != "fit":
            data.eval_test.check_encoder(self.model.encoder.spec)
            return
        if isinstance(data, ClientData):
            raise ValueError(
                f"CentralizedSSL needs ImageData, got {type(data).__name__}: use FederatedSSL with one client"
            )
        check_trains(self.trainer)
        self.prepare(data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the settings that a resumed run must share."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["run"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the settings of the checkpoint with those of this run.

        Raises:
            ValueError: The checkpoint belongs to another run.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == TrainerFn.FITTING:
            with restoring():
                check_same(checkpoint["run"], self._settings())

    def _settings(self) -> dict[str, Any]:
        optimizer = describe_optimizer(self.configure_optimizers())
        return {"method": type(self.method).__name__, "optimizer": optimizer, "seed": self.seed}

    def on_train_epoch_start(self) -> None:
        """Seed every epoch on its own, so that a resumed run continues as it would have."""
        self.method.generator = torch_generator(self.seed, "centralized augment", self.current_epoch)
        torch.manual_seed(derive_seed(self.seed, "centralized", self.current_epoch))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        """Compute the method's loss."""
        loss = self.method.training_step(batch, batch_idx)
        if loss is not None:
            self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch[0]))
            if not torch.isfinite(loss):
                raise ArithmeticError(f"loss {loss.item()} in step {self.global_step}")
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then update momentum targets from the new weights."""
        super().optimizer_step(*args, **kwargs)
        self.method.after_step()

    def configure_optimizers(self) -> Optimizer:
        """Create the method's optimizer."""
        optimizer = self.method.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        return optimizer
