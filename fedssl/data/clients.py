"""Base of the data modules for a federated run: every client's part of the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedssl.data.datasets import SampleSet
from fedssl.data.partition import partition_table


@dataclass(frozen=True)
class ClientDatasets:
    """Samples of every client.

    Args:
        clients: Images (or pieces of text) of each client; the position is the client's id.
        auxiliary: Unlabelled images that no client holds, for server-side calibration; ``None`` for none.
    """

    clients: Sequence[SampleSet]
    auxiliary: SampleSet | None

    @property
    def sizes(self) -> list[int]:
        """Number of samples of every client."""
        return [len(images) for images in self.clients]


class ClientData(LightningDataModule):
    """Base of the data modules for a federation.

    Attributes:
        dataset: Name of the data set.
        num_clients: Number of clients.
        download: Allow the download of absent data.
    """

    dataset: str
    num_clients: int
    download: bool

    @property
    @abstractmethod
    def federation(self) -> ClientDatasets:
        """Samples of the clients, available after ``setup("fit")``."""

    @property
    @abstractmethod
    def pool(self) -> SampleSet:
        """All training samples, available after ``setup("fit")``."""

    @property
    @abstractmethod
    def eval_test(self) -> SampleSet:
        """Samples of the final evaluation."""

    def train_dataloader(self) -> DataLoader:
        """Return a loader with one item an epoch, because an epoch of the trainer is a communication round."""
        return DataLoader([self.federation], batch_size=None)

    def class_counts(self) -> np.ndarray:
        """Count the images of each class that each client holds, or the pieces of each speaker.

        Returns:
            Counts (clients, classes); no columns for unlabelled data.
        """
        classes = np.arange(len(self.pool.classes))
        return np.stack([(each.labels.numpy()[:, None] == classes).sum(axis=0) for each in self.federation.clients])

    def table(self) -> str:
        """Return the partition as a table, one row a client."""
        parts, position = [], 0
        for client in self.federation.clients:
            parts.append(np.arange(position, position + len(client)))
            position += len(client)
        labels = torch.cat([client.labels for client in self.federation.clients]).numpy()
        return partition_table(parts, labels, self.pool.classes)


class Batches(Dataset):
    """Whole labelled batches, read by the index tensors of a sampler."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.samples.gather(indices), self.samples.labels[indices]


def in_order(samples: SampleSet, batch_size: int) -> DataLoader:
    """Return a loader of all samples once, in batches of (samples (B, ...), labels (B,))."""
    chunks = torch.arange(len(samples)).split(batch_size)
    return DataLoader(Batches(samples), sampler=chunks, batch_size=None)
