"""Progress display of a run: bars in a terminal, about twenty lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedssl.server.participation import Cohort
from fedssl.server.rounds import RoundReport
from fedssl.training.federated import FederatedSSL

LINES = 20
BAR = 16
SPEED_SECONDS = 3600
"""Window of the estimate of the remaining time. rich's default of 30 s holds no finished round if one takes minutes."""


class RoundProgress(ProgressBar):
    """Display of rounds (or epochs), stage, client, remaining time and the current step.

    Two bars in a terminal; otherwise about twenty lines over the whole run.

    Args:
        verbose: Add a line for every round, and one for every client without a usable result.
    """

    def __init__(self, verbose: bool = False) -> None:
        super().__init__()
        self.verbose = verbose
        self._enabled = True
        self._evaluated = False
        self._progress: Progress | None = None
        self._console = Console(file=sys.stderr)

    def disable(self) -> None:
        """Lightning's hook."""
        self._enabled = False

    def enable(self) -> None:
        """Lightning's hook."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the display."""
        if not self._enabled:
            return
        federated = isinstance(pl_module, FederatedSSL)
        if isinstance(pl_module, FederatedSSL) and pl_module.federation:
            self._after_clients = "calibration" if pl_module.settings.server.calibration else "aggregation"
            pl_module.federation.on_client = self._client_done
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(), TimeElapsedColumn())
            remaining = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._progress = Progress(*columns, *remaining, console=self._console, speed_estimate_period=SPEED_SECONDS)
            word, self._over = "rounds" if federated else "epochs", trainer.current_epoch
            self._rounds = self._progress.add_task(word, total=trainer.max_epochs, completed=self._over, note="")
            self._steps = self._progress.add_task("clients", total=None, visible=federated, note="")
            self._progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show that the first client of the round trains."""
        self._over = trainer.current_epoch
        self._show_step("clients")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the end of a round or epoch."""
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        note = self._note(pl_module, trainer)
        self._evaluated = False
        if self._progress:
            self._progress.update(self._rounds, completed=done, note=note)
        if not self._enabled:
            return
        due = done == total or done % max(1, total // LINES) == 0
        if self.verbose or (due and not self._progress):
            self._console.print(f"{done}/{total} {note}", highlight=False)
        if self.verbose and isinstance(pl_module, FederatedSSL) and pl_module.last_report:
            self._explain(pl_module.last_report)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the online evaluation, alone or within training."""
        if self._progress:
            self._show_step("kNN")
        elif trainer.state.fn == TrainerFn.VALIDATING:
            self._wait("evaluating: kNN")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the display of an evaluation that runs alone."""
        self._evaluated = True
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the final evaluation."""
        self._wait("evaluating: kNN and linear probe")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the display."""
        self._stop()

    on_test_end = on_train_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the display and print the command that resumes an interrupted run."""
        self._stop()
        if self._enabled and isinstance(exception, KeyboardInterrupt):
            by, rounds = f" by {exception}" if str(exception) else "", trainer.current_epoch
            again = f"--run_dir {trainer.default_root_dir} --ckpt_path auto"
            said = f"stopped{by} after {rounds} rounds; continue with {again}"
            self._console.print(said, highlight=False, soft_wrap=True)

    def _wait(self, what: str) -> None:
        """Show a spinner in a terminal, else print one line."""
        if not self._enabled:
            return
        if not self._console.is_terminal:
            self._console.print(what, highlight=False)
        self._progress = spinner(what, self._console)
        self._progress.start()

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _show_step(self, what: str) -> None:
        """Show a step of unknown length: the second bar moves to and fro."""
        if self._progress:
            visible = self._progress.tasks[-1].visible
            self._progress.remove_task(self._steps)
            self._steps = self._progress.add_task(what, total=None, visible=visible, note="")

    def _client_done(self, cohort: Cohort, client_id: int) -> None:
        if not self._progress:
            return
        position, total = cohort.participants.index(client_id) + 1, len(cohort.participants)
        # One part in ``total + 1`` is left for aggregation, so that the bar does not stand at the full round.
        self._progress.update(self._rounds, completed=self._over + position / (total + 1))
        if position == total:
            self._show_step(self._after_clients)
        else:
            self._progress.update(self._steps, completed=position, total=total, note=f"client {client_id}")

    def _explain(self, report: RoundReport) -> None:
        """Print the reason of every client without a usable result."""
        for failure in (*report.failures, *report.late):
            self._console.print(f"  client {failure.client_id}: {failure.reason}", highlight=False)
        for client in report.dropped:
            self._console.print(f"  client {client}: dropped out", highlight=False)

    def _note(self, pl_module: LightningModule, trainer: Trainer) -> str:
        metrics: dict[str, Any] = trainer.callback_metrics
        evaluated = metrics if self._evaluated else {}
        parts = []
        if isinstance(pl_module, FederatedSSL) and pl_module.federation and pl_module.last_report:
            report, stages = pl_module.last_report, len(pl_module.federation.server.stages)
            parts += [f"stage {report.stage + 1}/{stages}", f"clients {len(report.trained)}"]
            parts += [f"dropped {len(report.dropped)}"] * bool(report.dropped)
            parts += [f"failed {len(report.failures)}"] * bool(report.failures)
            parts += [f"loss {report.loss:.3f}" if report.trained else "nobody trained"]
        elif "train/loss" in metrics:
            parts += [f"loss {float(metrics['train/loss']):.3f}"]
        if "eval/knn_top1" in evaluated:
            parts += [f"kNN {float(evaluated['eval/knn_top1']):.1f} %"]
        if "eval/perplexity" in evaluated:
            parts += [f"perplexity {float(evaluated['eval/perplexity']):.2f}"]
        return ", ".join(parts)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show in a terminal which step runs and for how long; print nothing elsewhere."""
    with spinner(what, Console(file=sys.stderr)):
        yield


def spinner(what: str, console: Console) -> Progress:
    """Create the display of ``working``, for the caller to start and stop."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    display.add_task(what, total=None)
    return display
