"""Begin and end of a run: configuration, loggers, results, encoder and report, in its folder and for the user."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.trainer import Trainer
from pytorch_lightning.utilities import rank_zero_only

from fedssl.data.datasets.pixels import Decoding
from fedssl.data.disclosure import may_show_images
from fedssl.data.images import FederatedData, ImageData
from fedssl.runs.baselines import print_caution
from fedssl.runs.client_results import client_results
from fedssl.runs.model_card import model_card
from fedssl.runs.results import (
    accuracy_over_simulated_time,
    collect_results,
    print_results,
    print_shortfall,
    write_results,
)
from fedssl.runs.run_folder import CONFIG, METRICS, RESULTS, read_metrics
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.training.progress import working
from fedssl.training.tracking import WANDB_ID, MetricsCSV, define_axes, log_again, wandb_logger
from fedssl.utils.files import write_text
from linear_eval import EvaluatedModule


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

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the round beside an online evaluation; W&B would fill it in too, but too late for some rows."""
        if isinstance(pl_module, FederatedSSL):
            pl_module.log("round", float(trainer.current_epoch))

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration, and continue the metrics in ``metrics.csv`` and on W&B."""
        if self._begun:
            return
        self._begun = True
        changes = [f"# resumed with another {name}: {values}\n" for name, values in self._changes.items()]
        write_text(self._folder / CONFIG, "".join(changes) + yaml.safe_dump(self._configuration, sort_keys=False))
        # Before W&B begins: an offline run gets these rows again, see ``log_again``.
        rows = self.csv.resume(trainer.global_step)
        if self._use_wandb:
            name = "-".join(self._folder.parts[-2:])
            trainer.loggers = [*trainer.loggers, wandb_logger(self._folder, name, self._configuration)]
        wandb_loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        for logger in wandb_loggers:
            define_axes(logger, "round" if isinstance(pl_module, FederatedSSL) else "epoch")
            log_again(logger, rows)
        if wandb_loggers:
            write_text(self._folder / WANDB_ID, str(wandb_loggers[0].version))

    on_fit_end = on_train_start  # a resumed run whose rounds are all done never starts to train


def finish_test(module: EvaluatedModule, folder: Path, seconds: float) -> None:
    """Store the results of an evaluation in ``test.json``, and print them."""
    results = collect_results(module, seconds)
    write_results(results, folder / "test.json")
    print_results(results, folder)
    print_caution(results)
    print_shortfall(results)


def finish_fit(
    module: Pretraining, data: Any, folder: Path, seconds: float, changes: dict[str, str], show_images: bool | None
) -> None:
    """Export the encoder of a trained and evaluated module, store and print its results, and draw its report.

    Args:
        module: Trained and evaluated module.
        data: Data module of the run.
        folder: Run folder.
        seconds: Wall time.
        changes: Settings that changed on a resume, with their history.
        show_images: Include images of the data in the report; ``None`` includes those of public data sets only.
    """
    results = collect_results(module, seconds)
    results |= {"not_evaluated": data.no_evaluation} if data.no_evaluation else {}
    results |= _by_client(module, data)
    results |= {"files": data.accounts} if isinstance(data, ImageData) and data.accounts else {}
    _export(module, folder / "encoder", data.decoding if isinstance(data, ImageData) else None)
    over_time = accuracy_over_simulated_time(folder / METRICS)
    results |= {"accuracy_over_simulated_time": over_time} if over_time else {}
    results |= {"resumed_with_changes": changes} if changes else {}
    if isinstance(module, FederatedSSL) and module.settings.server.pace:
        from fedssl.runs.report import figures, theme  # their drawing library takes a while to load

        theme.save_figure(figures.pace(read_metrics(folder / METRICS)), folder / "pace.png")
    write_results(results, folder / RESULTS)
    if isinstance(data, ImageData) and (folder / "encoder").is_dir():
        write_text(folder / "encoder" / "README.md", model_card(results, data))
    print_results(results, folder)
    _report(module, data, folder, show_images)
    print_caution(results)
    print_shortfall(results)


def _by_client(module: Pretraining, data: Any) -> dict[str, Any]:
    """Evaluate the encoder for each client, if that is wanted; a failure here must not cost the other results."""
    if not (isinstance(module, FederatedSSL) and isinstance(data, FederatedData) and data.eval_clients):
        return {}
    try:
        with working("evaluating each client"):
            return {"by_client": client_results(module, data, module.trainer.strategy.root_device)}
    except (ValueError, OSError) as error:
        print(f"not evaluated for each client: {error}", file=sys.stderr)
        return {}


def _export(module: Pretraining, folder: Path, decoding: Decoding | None) -> None:
    """Write the encoder; one that is too shallow for timm, after an early end, must not cost the results."""
    try:
        module.export(folder, decoding)
    except ValueError as error:
        if not module.progress or module.progress.finished:
            raise
        print(f"no encoder: {error}", file=sys.stderr)


def _report(module: Pretraining, data: Any, folder: Path, show_images: bool | None) -> None:
    """Draw the report; the results are already on disk, so a failure here is printed and the run succeeds."""
    from fedssl.runs.report.run_report import deliver_report  # its drawing libraries take a while to load

    try:
        with working("drawing the report"):
            page = deliver_report(module, data, folder, module.trainer.loggers, show_images)
        hidden = (
            show_images is None and bool(module.reports) and isinstance(data, ImageData) and not may_show_images(data)
        )
        print(f"report: {page}" + " (without your images; --show_images true shows them)" * hidden)
    except Exception as error:
        if os.environ.get("FEDSSL_DEBUG"):
            raise
        print(f"no report: {error} (FEDSSL_DEBUG=1 shows where)", file=sys.stderr)
