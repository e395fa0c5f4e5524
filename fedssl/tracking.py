"""Where metrics go: a CSV file always, Weights & Biases beside it."""

from __future__ import annotations

import csv
import netrc
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from fedssl.disclosure import without_paths
from fedssl.files import naming, write_atomically

WANDB_ID = "wandb_id"
METRIC_GROUPS = ("client", "server", "cost", "eval", "test", "time", "pace", "train")
"""What the names of metrics begin with: who measured."""


class MetricsCSV(Logger):
    """``metrics.csv``: one row a step, one column a metric.

    A resumed run keeps the rows before its first new step and replaces the later ones. Lightning's own CSV
    logger deletes the file instead.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] | None = None
        self._columns: list[str] = []
        self._changed: set[int] = set()
        self._last = -1
        self._offset = 0

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Unused; the run folder is the version."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder has ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds metrics to the row of a step."""
        step = 0 if step is None else step
        if self._rows is None:
            self._rows = {at: row for at, row in self._read().items() if at < step}
        self._rows.setdefault(step, {"step": step}).update(metrics)
        self._changed.add(step)

    @rank_zero_only
    def save(self) -> None:
        """Brings the file up to date; only the last row is written again while the columns stay the same."""
        if not self._rows or not self._changed:
            return
        last = max(self._rows)
        known = self._columns or [key for row in self._rows.values() for key in row]
        columns = list(dict.fromkeys([*known, *self._rows[last]]))
        if columns != self._columns or self._changed != {last}:
            self._columns = columns
            write_atomically(self.path, self._write_all)
        else:
            self._write_last(last)
        self._last = last
        self._changed.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the last row."""
        self.save()

    def _read(self) -> dict[int, dict[str, Any]]:
        if not self.path.exists():
            return {}
        with self.path.open(newline="") as file:
            return {int(row["step"]): dict(row) for row in csv.DictReader(file)}

    def _write_all(self, path: Path) -> None:
        assert self._rows is not None
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            for step in sorted(self._rows):
                self._offset = file.tell()
                writer.writerow(self._rows[step])

    def _write_last(self, last: int) -> None:
        assert self._rows is not None
        with naming(self.path), self.path.open("r+", newline="") as file:
            file.seek(*((self._offset, 0) if last == self._last else (0, 2)))
            file.truncate()
            self._offset = file.tell()
            csv.DictWriter(file, self._columns, restval="").writerow(self._rows[last])


def wandb_logger(folder: Path, name: str, config: dict[str, Any]) -> WandbLogger:
    """One W&B run an experiment: offline unless logged in, and the same id after a resume.

    It gets no paths, and neither the command line nor what is printed: an error may name a patient's file.
    """
    remembered = folder / WANDB_ID
    identity = remembered.read_text().strip() if remembered.exists() else uuid.uuid4().hex[:8]
    return WandbLogger(
        name=name,
        save_dir=folder,
        id=identity,
        project="fedssl",
        resume="allow",
        offline=not logged_in(),
        config=without_paths(config),
        settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
    )


def define_axes(logger: WandbLogger, unit: str) -> None:
    """Makes W&B draw metrics over rounds (or epochs), and sums of stages over stages, instead of over its own steps.

    Args:
        logger: Of the run.
        unit: The metric that counts what most metrics are drawn over: ``round`` or ``epoch``.
    """
    for group in METRIC_GROUPS:
        logger.experiment.define_metric(f"{group}/*", step_metric=unit)
    logger.experiment.define_metric("stage/*", step_metric="stage")


def logged_in() -> bool:
    """Whether W&B may go online: it has a key and its mode is not set otherwise."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
