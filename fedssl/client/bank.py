"""Activation banks: settings, size limits and storage of the frozen prefix's outputs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedssl.protocol.messages import Task
from fedssl.utils.units import format_bytes, parse_bytes
from layerwise import Stage
from layerwise.memory import InfeasibleBudgetError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ActivationBank:
    """Bank of stored activations: clients run the frozen prefix once and train the active part on its outputs.

    For every image, ``pairs`` first and ``pairs`` second views are drawn, passed through the prefix and stored in few
    bits. A local step draws one stored first and one stored second view of each image, out of ``pairs`` squared
    combinations. This is an approximation: augmentation is limited to the stored views, and their activations are
    rounded. Stages without frozen parts use no bank.

    A bank is filled when a stage begins, when a frozen part changes (by calibration, or by another draw of depth
    dropout), and every ``refresh`` rounds.

    Args:
        pairs: Number of stored first views, and of second views, of each image.
        refresh: Rounds after which new views are drawn; ``None`` draws them only when a stage begins.
        bits: Bits of a stored value, 16 or 8.
        budget: Largest size of one client's bank, such as "256MiB".
        folder: Folder in which banks are mapped to files; ``None`` holds them in memory.
    """

    pairs: int = 4
    refresh: int | None = None
    bits: Literal[16, 8] = 16
    budget: str = "1GiB"
    folder: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("pairs", self.pairs), ("refresh", self.refresh)):
            if value is not None and value < 1:
                raise ValueError(f"bank.{name} must be at least 1, got {value}")
        if self.bits not in (16, 8):
            raise ValueError(f"bank.bits must be 16 or 8, got {self.bits}")
        parse_bytes(self.budget)

    def settings(self) -> str:
        """Describe the settings that decide the content, for people."""
        return f"{self.pairs} pairs of {self.bits} bits, refresh {self.refresh}"

    @property
    def path(self) -> Path | None:
        """Folder of the files."""
        return None if self.folder is None else Path(self.folder)

    def period(self, round_: int) -> int:
        """Return the index of a round's period; rounds of one period have the same stored views."""
        return round_ // self.refresh if self.refresh else 0

    def content(self, task: Task) -> str:
        """Describe the sources of a task's bank besides the images and the seed; empty without frozen parts."""
        if not task.frozen_ids:
            return ""
        frozen = ", ".join(f"{name} {content}" for name, content in task.frozen_ids.items())
        return f"stage {task.stage.index}, period {self.period(task.round)}: {frozen}"

    def size(self, num_images: int, shapes: Iterable[Shape]) -> int:
        """Return the bytes of a client's bank.

        Args:
            num_images: Number of the client's images.
            shapes: Shapes of the prefix's outputs for one image, one for each view.
        """
        return sum(bytes_of_rows(self.pairs * num_images, shape, self.bits) for shape in shapes)

    def check(self, stage: Stage, num_images: int, shapes: Sequence[Shape]) -> None:
        """Refuse a client's bank that exceeds the budget.

        Raises:
            InfeasibleBudgetError: The bank exceeds the budget; the message has the bytes that it needs.
        """
        needed = self.size(num_images, shapes)
        if needed > parse_bytes(self.budget):
            raise InfeasibleBudgetError(
                f"the bank of {num_images} images needs {format_bytes(needed)} ({needed} bytes) at stage "
                f"{stage.index + 1} with {self.pairs} pairs in {self.bits} bits, more than bank.budget {self.budget}: "
                "raise it, or use fewer pairs or 8 bits",
                needed,
            )


HALF_MAX = torch.finfo(torch.float16).max
LEVELS = 255
"""Quantisation steps between the smallest and the largest of 8-bit values that share a scale."""


class Rows:
    """Table with one activation a row, in 16 or 8 bits.

    With 16 bits rows are half-precision floats. With 8 bits they are codes: the values of a row with the same first
    index (those of a token, or of a channel) share a smallest value and a step, and are rounded to the nearest.

    Args:
        count: Number of rows.
        shape: Shape of one activation.
        bits: Bits of a value, 16 or 8.
        folder: Folder in which the values are mapped to a file that disappears with the table; ``None`` holds them in
            memory.

    Raises:
        OSError: The folder has too little space.
    """

    def __init__(self, count: int, shape: tuple[int, ...], bits: int, folder: Path | None) -> None:
        self._values = _table((count, *shape), torch.float16 if bits == 16 else torch.uint8, folder)
        self._scales = None if bits == 16 else _table((2, count, shape[0]), torch.float32, folder)

    def write(self, start: int, activations: Tensor) -> None:
        """Write activations (B, ...) to the rows from ``start`` on.

        Raises:
            ValueError: An activation is too large for 16 bits.
        """
        rows = slice(start, start + len(activations))
        values = activations.detach().float().cpu()
        if self._scales is not None:
            groups = values.flatten(2)
            least, most = groups.aminmax(dim=2)
            step = (most - least) / LEVELS
            self._scales[0, rows], self._scales[1, rows] = least, step
            # Equal values have a step of 0: their codes become 0, and the smallest value alone restores them.
            codes = (groups - least[..., None]) / step.clamp_min(torch.finfo(step.dtype).tiny)[..., None]
            values = codes.round_().clamp_(0, LEVELS).view_as(values)
        elif (largest := values.abs().max().item()) > HALF_MAX:
            raise ValueError(
                f"an activation of {largest:g} is beyond the {HALF_MAX:g} that bank.bits 16 can hold: set bank.bits 8"
            )
        self._values[rows] = values.to(self._values.dtype)

    def read(self, rows: Tensor) -> Tensor:
        """Return the activations in these rows (B,), float32 (B, ...)."""
        values = self._values[rows].float()
        if self._scales is not None:
            least, step = self._scales[:, rows, :, None]
            # In place, since indexing has made a copy already and rows are read in every step.
            values.flatten(2).mul_(step).add_(least)
        return values


def bytes_of_rows(count: int, shape: tuple[int, ...], bits: int) -> int:
    """Return the bytes of a table."""
    return count * (prod(shape) * bits // 8 + (0 if bits == 16 else 2 * 4 * shape[0]))


def _table(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = prod(shape) * dtype.itemsize, shutil.disk_usage(folder).free
    if needed > free:  # a mapped file that finds no space ends the process without a word
        raise OSError(f"{folder} has {format_bytes(free)} left, and a bank needs {format_bytes(needed)} there")
    # The name goes at once and the mapping stays: the space is free when the table goes, even after a kill.
    with tempfile.NamedTemporaryFile(dir=folder, prefix="bank-") as file:
        return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)
