"""Tensors without their content: a view of a numbered value or of a named parameter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """How a tensor looks at its storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: Tensor) -> View:
        """The view that a tensor is."""
        return View(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())

    def on(self, storage: torch.UntypedStorage) -> Tensor:
        """The same view of another storage."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.shape, self.stride)


@dataclass(frozen=True)
class Ref:
    """A tensor of the step: a view of value number ``value``."""

    value: int
    view: View


@dataclass(frozen=True)
class StateRef:
    """A tensor of the step that is, or looks at, the parameter or buffer called ``name``."""

    name: str
    view: View
