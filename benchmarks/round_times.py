"""Times at which the rounds of a measured process end, written by it and read by the benchmark."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.process_tree import run_measured

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "disabled"}


def tick(file: Path) -> None:
    """Notes the time: of the beginning of the first round, then of the end of every one."""
    with file.open("a") as times:
        times.write(f"{time.time()}\n")


class RoundTimes(Callback):
    """Notes them for a Lightning Trainer whose epochs are rounds; of several processes the first one does.

    Args:
        file: Where.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        if trainer.is_global_zero:
            tick(self.file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook; the checkpoint of a round counts for the next one."""
        if trainer.is_global_zero:
            tick(self.file)


@dataclass(frozen=True)
class Measured:
    """Time and memory of a process and its children.

    Args:
        startup: Seconds from the command to the first round.
        first: Seconds of the first round, in which models are built and processes may start.
        later: Seconds of every later one.
        peak_bytes: Largest proportional set size of the process tree.
    """

    startup: float
    first: float
    later: list[float]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Median of the later rounds."""
        return statistics.median(self.later)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


def measure(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Measured:
    """Runs a command that ticks into ``folder/times``; it is given one thread a process."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "times"
    file.unlink(missing_ok=True)
    began = time.time()
    peak = run_measured(command, folder / "log", ONE_THREAD | (environment or {}))
    start, *ends = map(float, file.read_text().split())
    rounds = [end - before for before, end in zip([start, *ends], ends, strict=False)]
    return Measured(start - began, rounds[0], rounds[1:], peak)
