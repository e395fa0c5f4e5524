"""Progress of a run: bars in a terminal, a line now and then elsewhere."""

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
"""The remaining time is estimated from the rounds of the last hour: a round may take minutes."""


class RoundProgress(ProgressBar):
    """Shows rounds (or epochs), stage, client and remaining time, and which other step is at work.

    In a terminal these are two bars; otherwise about twenty lines over the whole run.

    Args:
        verbose: Adds a line for every round, and one for every client that gave nothing usable.
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
        """Starts the display."""
        if not self._enabled:
            return
        federated = isinstance(pl_module, FederatedSSL)
        if federated:
            self._after_clients = "calibration" if pl_module.calibration else "aggregation"
            pl_module.on_client = self._client_done
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(), TimeElapsedColumn())
            remaining = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._progress = Progress(*columns, *remaining, console=self._console, speed_estimate_period=SPEED_SECONDS)
            word, self._over = "rounds" if federated else "epochs", trainer.current_epoch
            self._rounds = self._progress.add_task(word, total=trainer.max_epochs, completed=self._over, note="")
            self._steps = self._progress.add_task("clients", total=None, visible=federated, note="")
            self._progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first client of the round is at work."""
        self._over = trainer.current_epoch
        self._show_step("clients")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One round or epoch is over."""
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
        """The online evaluation runs; alone, or within training."""
        if self._progress:
            self._show_step("kNN")
        elif trainer.state.fn == TrainerFn.VALIDATING:
            self._wait("evaluating: kNN")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the display if there was only this to show."""
        self._evaluated = True
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the display."""
        self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final evaluation runs."""
        self._wait("evaluating: kNN and linear probe")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the display."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the display and says how to go on."""
        self._stop()
        if self._enabled and isinstance(exception, KeyboardInterrupt):
            by, rounds = f" by {exception}" if str(exception) else "", trainer.current_epoch
            again = f"--run_dir {trainer.default_root_dir} --ckpt_path auto"
            said = f"stopped{by} after {rounds} rounds; continue with {again}"
            self._console.print(said, highlight=False, soft_wrap=True)

    def _wait(self, what: str) -> None:
        """A spinner in a terminal, else one line."""
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
        """Something of unknown length is at work: the second bar moves to and fro."""
        if self._progress:
            visible = self._progress.tasks[-1].visible
            self._progress.remove_task(self._steps)
            self._steps = self._progress.add_task(what, total=None, visible=visible, note="")

    def _client_done(self, cohort: Cohort, client_id: int) -> None:
        if not self._progress:
            return
        position, total = cohort.participants.index(client_id) + 1, len(cohort.participants)
        self._progress.update(self._rounds, completed=self._over + position / (total + 1))
        if position == total:
            self._show_step(self._after_clients)
        else:
            self._progress.update(self._steps, completed=position, total=total, note=f"client {client_id}")

    def _explain(self, report: RoundReport) -> None:
        """Why clients gave nothing."""
        for failure in (*report.failures, *report.late):
            self._console.print(f"  client {failure.client_id}: {failure.reason}", highlight=False)
        for client in report.dropped:
            self._console.print(f"  client {client}: dropped out", highlight=False)

    def _note(self, pl_module: LightningModule, trainer: Trainer) -> str:
        metrics: dict[str, Any] = trainer.callback_metrics
        evaluated = metrics if self._evaluated else {}
        parts = []
        if isinstance(pl_module, FederatedSSL) and pl_module.server and pl_module.last_report:
            report, stages = pl_module.last_report, len(pl_module.server.stages)
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
    """Shows in a terminal that something is at work and for how long; says nothing elsewhere."""
    with spinner(what, Console(file=sys.stderr)):
        yield


def spinner(what: str, console: Console) -> Progress:
    """The display of :func:`working`, to be started and stopped."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    display.add_task(what, total=None)
    return display
