"""Progress of a run: bars in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedssl.federated import FederatedSSL
from fedssl.participation import Cohort

LINES = 20


class RoundProgress(ProgressBar):
    """Shows rounds (or epochs), stage, client and remaining time.

    In a terminal these are two bars; otherwise about twenty lines over the whole run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._console = Console(file=sys.stderr)

    def disable(self) -> None:
        """Lightning's hook."""
        self._enabled = False

    def enable(self) -> None:
        """Lightning's hook."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the display."""
        if not self._enabled:
            return
        federated = isinstance(pl_module, FederatedSSL)
        if federated:
            pl_module.on_client = self._client_done
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            word = "rounds" if federated else "epochs"
            done = trainer.current_epoch
            self._rounds = self._progress.add_task(word, total=trainer.max_epochs, completed=done, note="")
            self._clients = self._progress.add_task("clients", total=1, visible=federated, note="")
            self._progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One round or epoch is over."""
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        note = self._note(pl_module, trainer)
        if self._progress:
            self._progress.update(self._rounds, completed=done, note=note)
        elif self._enabled and (done == total or done % max(1, total // LINES) == 0):
            self._console.print(f"{done}/{total} {note}", highlight=False)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that the online evaluation runs."""
        if self._progress:
            self._progress.update(self._clients, description="evaluation", note="")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the display."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the display and says how to go on."""
        self._stop()
        if self._enabled and isinstance(exception, KeyboardInterrupt):
            rounds = trainer.current_epoch
            self._console.print(f"stopped after {rounds} rounds; continue with --ckpt_path last", highlight=False)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that the final evaluation runs."""
        if self._enabled:
            self._console.print("evaluating", highlight=False)

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _client_done(self, cohort: Cohort, client_id: int) -> None:
        if self._progress:
            position = cohort.participants.index(client_id) + 1
            self._progress.update(
                self._clients,
                description="clients",
                completed=position,
                total=len(cohort.participants),
                note=f"client {client_id}",
            )

    def _note(self, pl_module: LightningModule, trainer: Trainer) -> str:
        metrics: dict[str, Any] = trainer.callback_metrics
        parts = []
        if isinstance(pl_module, FederatedSSL) and pl_module.server and pl_module.last_report:
            report, stages = pl_module.last_report, len(pl_module.server.stages)
            parts += [f"stage {report.stage + 1}/{stages}", f"clients {len(report.trained)}"]
            parts += [f"dropped {len(report.dropped)}"] * bool(report.dropped)
            parts += [f"failed {len(report.failures)}"] * bool(report.failures)
            parts += [f"loss {report.loss:.3f}"]
        elif "train/loss" in metrics:
            parts += [f"loss {float(metrics['train/loss']):.3f}"]
        if "eval/knn_top1" in metrics:
            parts += [f"kNN {float(metrics['eval/knn_top1']):.1f} %"]
        if "eval/perplexity" in metrics:
            parts += [f"perplexity {float(metrics['eval/perplexity']):.2f}"]
        return ", ".join(parts)
