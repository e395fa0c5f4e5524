"""Frozen features of labelled images."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """Features of N images with their class labels.

    Args:
        x: Features, float32, (N, D).
        y: Class labels, int64, (N,), each 0 or above, on the same device as ``x``.

    Raises:
        ValueError: A shape, dtype or device is wrong, there are no images, labels are negative, or values are not
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
        if x.device != y.device:
            raise ValueError(f"features and labels must share a device, got {x.device} and {y.device}")
        _refuse_negative(y)
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(dim=1).sum())
            raise ValueError(
                f"features must be finite: {bad} of {len(x)} rows hold NaN or inf; the encoder has diverged"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """Width D of a feature."""
        return self.x.shape[1]

    def select(self, index: Tensor) -> "Features":
        """Return the rows at the given positions, int64 (M,), in that order."""
        return Features(self.x[index], self.y[index])


def extract_features(encoder: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Features:
    """Extract features: run a frozen encoder once over labelled batches.

    Args:
        encoder: Maps the first item of a batch to features (B, D). A module runs in evaluation mode, and the mode of
            each of its submodules is restored afterwards; the mode of any other callable is left to the caller.
        batches: Pairs of an input, handed to the encoder as it is, and integer labels (B,).

    Returns:
        The features in float32, in the order of the batches, on the device of the encoder's output.

    Raises:
        ValueError: There are no batches, labels are not integers or are negative, or features are not (B, D).
    """
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(encoder):
        for inputs, labels in batches:
            _check_labels(labels)
            x = encoder(inputs)
            if x.ndim != 2 or len(x) != len(labels):
                raise ValueError(f"the encoder must give pooled features ({len(labels)}, D), got {tuple(x.shape)}")
            xs.append(x.float())
            ys.append(labels.to(x.device, torch.int64))
    if not xs:
        raise ValueError("no batches: at least one labelled batch is needed to extract features")
    return Features(torch.cat(xs), torch.cat(ys))


def _check_labels(labels: Tensor) -> None:
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers of shape (B,), got {labels.dtype} {tuple(labels.shape)}")
    _refuse_negative(labels)


def _refuse_negative(labels: Tensor) -> None:
    negative = int((labels < 0).sum())
    if negative:
        raise ValueError(
            f"{negative} of {len(labels)} labels are negative (unlabelled images); "
            "evaluate on labelled images only: filter the data set to rows with y >= 0"
        )


@contextmanager
def evaluation_mode(encoder: object) -> Iterator[None]:
    """Put a module into evaluation mode; the mode of each of its submodules is restored afterwards."""
    modes = [(m, m.training) for m in encoder.modules()] if isinstance(encoder, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
