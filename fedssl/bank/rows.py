"""Activations of many samples in few bits, in memory or in a mapped file."""

from __future__ import annotations

import shutil
import tempfile
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fedssl.units import format_bytes

LEVELS = 255
"""Steps between the smallest and the largest of 8-bit values that share a scale."""


class Rows:
    """A table with one activation a row.

    With 16 bits rows are half-precision floats. With 8 bits they are codes: the values of a row with the same first
    index (those of a token, or of a channel) share a smallest value and a step, and are rounded to the nearest.

    Args:
        count: Rows.
        shape: Of one activation.
        bits: 16 or 8.
        folder: Where the values are mapped to a file, which disappears with the table; ``None``: in memory.

    Raises:
        OSError: The folder has no space for them.
    """

    def __init__(self, count: int, shape: tuple[int, ...], bits: int, folder: Path | None) -> None:
        self._values = _table((count, *shape), torch.float16 if bits == 16 else torch.uint8, folder)
        self._scales = None if bits == 16 else _table((2, count, shape[0]), torch.float32, folder)

    def write(self, start: int, activations: Tensor) -> None:
        """Fills the rows from ``start`` on with activations (B, ...)."""
        rows = slice(start, start + len(activations))
        values = activations.detach().float().cpu()
        if self._scales is not None:
            groups = values.flatten(2)
            least, most = groups.aminmax(dim=2)
            step = (most - least) / LEVELS
            self._scales[0, rows], self._scales[1, rows] = least, step
            codes = (groups - least[..., None]) / step.clamp_min(torch.finfo(step.dtype).tiny)[..., None]
            values = codes.round_().clamp_(0, LEVELS).view_as(values)
        self._values[rows] = values.to(self._values.dtype)

    def read(self, rows: Tensor) -> Tensor:
        """The activations in these rows (B,), float32 (B, ...)."""
        values = self._values[rows].float()
        if self._scales is not None:
            least, step = self._scales[:, rows, :, None]
            values.flatten(2).mul_(step).add_(least)
        return values


def bytes_of_rows(count: int, shape: tuple[int, ...], bits: int) -> int:
    """Bytes that a table takes."""
    return count * (prod(shape) * bits // 8 + (0 if bits == 16 else 2 * 4 * shape[0]))


def _table(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = prod(shape) * dtype.itemsize, shutil.disk_usage(folder).free
    if needed > free:  # a mapped file that finds no space ends the process without a word
        raise OSError(f"{folder} has {format_bytes(free)} left, and a bank needs {format_bytes(needed)} there")
    with tempfile.NamedTemporaryFile(dir=folder, prefix="bank-") as file:
        return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)
