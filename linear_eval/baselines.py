"""Baselines that need no encoder: raw pixels, and the most frequent class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from linear_eval.metrics import ClassificationMetrics, classification_metrics

KNN_SIDE, PROBE_SIDE = 32, 8
"""Cells a side to which larger images are pooled: for kNN (all of a CIFAR image), and for the linear probe, which is
better on few cells than on all pixels of a small labelled set, and takes seconds instead of minutes."""


def pixel_features(images: Tensor, side: int) -> Tensor:
    """Take the pixels themselves as features, averaged over cells of equal area where images are larger than ``side``.

    Args:
        images: uint8 (B, C, H, W).
        side: Most cells a side, at least 1.

    Returns:
        float32 (B, C * min(H, side) * min(W, side)), from 0 to 1.
    """
    cells = min(images.shape[-2], side), min(images.shape[-1], side)
    pixels = images.float() / 255
    return (pixels if cells == images.shape[-2:] else F.adaptive_avg_pool2d(pixels, cells)).flatten(1)


def majority_metrics(train: Tensor, test: Tensor, num_classes: int) -> ClassificationMetrics:
    """Score the answer that is always the most frequent class of the training labels, the lowest of equals.

    Args:
        train: Training labels, int64 (N,).
        test: Test labels, int64 (M,).
        num_classes: Number of classes; every label must be below it.
    """
    most = torch.bincount(train, minlength=num_classes).argmax()
    return classification_metrics(test, most.expand(len(test)), num_classes)
