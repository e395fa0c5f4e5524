"""Frozen features of labelled images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Features of N images with their class labels.

    Args:
        x: Features, float32, (N, D).
        y: Class labels, int64, (N,), each 0 or above, on the same device as ``x``.

    Raises:
        ValueError: A shape or dtype is wrong, there are no images, labels are negative, or values are not
            finite.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim != 2 or x.dtype != torch.float32 or 0 in x.shape:
            raise ValueError(f"features must be non-empty float32 (N, D), got {x.dtype} {tuple(x.shape)}")
        if y.ndim != 1 or y.dtype != torch.int64 or len(y) != len(x):
            raise ValueError(f"labels must be int64 ({len(x)},), one per feature row, got {y.dtype} {tuple(y.shape)}")
        if negative := int((y < 0).sum()):
            raise ValueError(f"{negative} of {len(y)} labels are negative: evaluate on labelled images only")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(dim=1).sum())
            raise ValueError(f"{bad} of {len(x)} rows of features hold NaN or inf: the encoder has diverged")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """Width D of a feature."""
        return self.x.shape[1]

    def select(self, index: Tensor) -> "Features":
        """Return the rows at the given positions, int64 (M,), in that order."""
        return Features(self.x[index], self.y[index])
