"""Beginning of a run: its configuration, its metrics and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.trainer import Trainer
from pytorch_lightning.utilities import rank_zero_only

from fedssl.runs.run_folder import CONFIG, METRICS
from fedssl.training.federated import FederatedSSL
from fedssl.training.tracking import WANDB_ID, MetricsCSV, define_axes, log_again, wandb_logger
from fedssl.utils.files import write_text


class RunBeginning(Callback):
    """Open the files of a run once nothing can be refused any more.

    ``config.yaml`` is what makes the folder a run: a refused run leaves none.

    Args:
        folder: Run folder.
        configuration: All settings, as ``config.yaml`` holds them.
        changes: Settings that changed on a resume, with their history.
        use_wandb: Log to W&B, beside the loggers of the trainer.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any], changes: dict[str, str], use_wandb: bool) -> None:
        self.csv = MetricsCSV(folder / METRICS)
        self._folder, self._configuration, self._changes = folder, configuration, changes
        self._use_wandb, self._begun = use_wandb, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the files."""
        self._begin(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the files of a resumed run whose rounds are all done: it never starts to train."""
        self._begin(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the round beside an online evaluation; W&B would fill it in too, but too late for some rows."""
        if isinstance(pl_module, FederatedSSL):
            pl_module.log("round", float(trainer.current_epoch))

    @rank_zero_only
    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        if self._begun:
            return
        self._begun = True
        changes = [f"# resumed with another {name}: {values}\n" for name, values in self._changes.items()]
        write_text(self._folder / CONFIG, "".join(changes) + yaml.safe_dump(self._configuration, sort_keys=False))
        rows = self.csv.resume(trainer.global_step)
        if self._use_wandb:
            name = "-".join(self._folder.parts[-2:])
            trainer.loggers = [*trainer.loggers, wandb_logger(self._folder, name, self._configuration)]
        wandb_loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        for logger in wandb_loggers:
            define_axes(logger, "round" if isinstance(module, FederatedSSL) else "epoch")
            log_again(logger, rows)
        if wandb_loggers:
            write_text(self._folder / WANDB_ID, str(wandb_loggers[0].version))
