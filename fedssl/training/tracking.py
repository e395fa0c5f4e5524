"""Metric loggers: a CSV file always, Weights & Biases beside it."""

from __future__ import annotations

import csv
import netrc
import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from fedssl.data.disclosure import without_paths
from fedssl.utils.files import write_atomically

PROJECT = "fedssl"
WANDB_ID = "wandb_id"
METRIC_GROUPS = ("client", "server", "cost", "eval", "test", "time", "pace", "train")
"""Prefixes of metric names; they tell who measured."""

GLOBAL_STEP = "trainer/global_step"
"""Key under which Lightning logs its step."""


class MetricsCSV(Logger):
    """Logger of ``metrics.csv``: one row a step, one column a metric.

    A resumed run keeps the rows before its first new step and replaces the later ones. Lightning's own CSV logger
    deletes the file instead. A damaged line is left out, with a message.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] | None = None
        self._changed = False

    @property
    def name(self) -> str:
        """Name of the logger, for Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: the run folder is the version."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step."""
        step = 0 if step is None else step
        if self._rows is None:
            self.resume(step)
        assert self._rows is not None
        self._rows.setdefault(step, {"step": step}).update(metrics)
        self._changed = True

    def resume(self, step: int) -> list[dict[str, Any]]:
        """Cut the rows back to those before a step; print to stderr if some of these are missing.

        Args:
            step: First step that this process logs.

        Returns:
            The rows that stay, in order.
        """
        found, damaged = read_rows(self.path) if self.path.exists() else ({}, [])
        self._rows = {at: row for at, row in sorted(found.items()) if at < step}
        if step and not self.path.exists():
            print(f"{self.path} is missing: the run goes on without its rows before step {step}", file=sys.stderr)
        elif step and damaged:
            kept = self.path.with_name(f"{self.path.name}.damaged")
            shutil.copyfile(self.path, kept)
            lines = ", ".join(map(str, damaged[:5])) + (", ..." if damaged[5:] else "")
            print(f"{self.path} is damaged in line {lines}, which is left out; {kept} is as it was", file=sys.stderr)
        return list(self._rows.values())

    @rank_zero_only
    def save(self) -> None:
        """Write the file, unless it has all rows: Lightning asks several times a step."""
        if self._rows and self._changed:
            write_atomically(self.path, self._write)
            self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        self.save()

    def _write(self, path: Path) -> None:
        rows = [row for _, row in sorted((self._rows or {}).items())]
        # The whole file each time, 40 ms for a thousand rounds of 60 metrics: an appended line could tear.
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
            writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Read a metrics file, of which any line may be damaged.

    Returns:
        Rows by step, and the numbers of the lines that are not whole rows of numbers, from 1.
    """
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    columns = next(csv.reader(lines[:1]), [])
    rows, damaged = {}, [] if "step" in columns else [1]
    for number, line in enumerate(lines[1:], 2):
        row = _row(columns, line)
        if row:
            rows[int(row["step"])] = row
        else:
            damaged.append(number)
    return rows, damaged


def _row(columns: list[str], line: str) -> dict[str, Any] | None:
    """Parse the row of a line; ``None`` if the line lacks its end, as a torn one does, or holds other than numbers."""
    try:
        row = dict(zip(columns, next(csv.reader([line])), strict=True))
        _ = int(row["step"]), [float(value) for value in row.values() if value]
    except (KeyError, ValueError, csv.Error):
        return None
    return row if line.endswith("\n") else None


def wandb_logger(folder: Path, name: str, config: dict[str, Any]) -> WandbLogger:
    """Open one W&B run an experiment: offline unless logged in, and with the same id after a resume.

    W&B gets no paths, no command line and no printed output: an error may name a patient's file.
    """
    remembered = folder / WANDB_ID
    identity = remembered.read_text().strip() if remembered.exists() else uuid.uuid4().hex[:8]
    run = wandb.init(
        name=name,
        dir=folder,
        id=identity,
        project=PROJECT,
        resume="allow",
        mode=wandb_mode(),
        config=without_paths(config),
        settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
        reinit="finish_previous",
    )
    return WandbLogger(experiment=run, id=identity)


def wandb_mode() -> Literal["offline"] | None:
    """Mode of W&B: ``offline`` where it would ask for a login; ``None`` leaves the choice to ``WANDB_MODE``."""
    mode = os.environ.get("WANDB_MODE")
    if logged_in() or mode not in (None, "online"):
        return None
    if mode:
        print("WANDB_MODE is online, but there is no login (wandb login): W&B logs offline", file=sys.stderr)
    return "offline"


def log_again(logger: WandbLogger, rows: Sequence[dict[str, Any]]) -> None:
    """Log the rows of earlier processes again, unless W&B already has them.

    Offline W&B cannot continue a run: every process writes a file of its own, and after a kill the last rounds are in
    none of them. Logged again, all rounds are in the file of the last process.

    Args:
        logger: Logger of a resumed run.
        rows: Rows of ``metrics.csv``.
    """
    if logger.experiment.resumed:
        return
    for row in rows:
        metrics = {key: float(value) for key, value in row.items() if value and key != "step"}
        logger.log_metrics(metrics, int(row["step"]))


def define_axes(logger: WandbLogger, unit: str) -> None:
    """Make W&B draw metrics over rounds (or epochs), and sums of stages over stages, instead of over its own steps.

    Args:
        logger: Logger of the run.
        unit: Metric on the horizontal axis: ``round`` or ``epoch``.
    """
    logger.experiment.define_metric(GLOBAL_STEP)
    logger.experiment.define_metric("*", step_metric=GLOBAL_STEP, step_sync=True)
    for group in METRIC_GROUPS:
        logger.experiment.define_metric(f"{group}/*", step_metric=unit)
    logger.experiment.define_metric("stage/*", step_metric="stage")


def logged_in() -> bool:
    """Tell if W&B may go online: it has a key, and its mode is not set otherwise."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
