"""Whole batches of a sample set for a DataLoader."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedssl.datasets import SampleSet


class Batches(Dataset):
    """Whole labelled batches by index tensor, which a sampler gives."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.samples.gather(indices), self.samples.labels[indices]


def in_order(samples: SampleSet, batch_size: int) -> DataLoader:
    """All samples once, in batches of (samples (B, ...), labels (B,))."""
    chunks = torch.arange(len(samples)).split(batch_size)
    return DataLoader(Batches(samples), sampler=chunks, batch_size=None)
