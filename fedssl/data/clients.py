"""Base of the data modules for a federated run: every client's part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedssl.data.datasets import SampleSet
from fedssl.data.partition import Partitioner, partition_table


@dataclass(frozen=True)
class ClientDatasets:
    """Samples of every client.

    Args:
        clients: Images (or pieces of text) of each client; the position is the client's id.
        auxiliary: Unlabelled images that no client holds, for server-side calibration; ``None`` for none.
        names: Names of the clients; numbers if left out.
    """

    clients: Sequence[SampleSet]
    auxiliary: SampleSet | None = None
    names: Sequence[str] = ()

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
        datasets: Samples of the clients, after ``setup("fit")``.
        pool: All training samples, after ``setup("fit")``.
        eval_test: Samples of the final evaluation, after ``setup``.
        no_evaluation: Reason why nothing is evaluated; empty if something is.
    """

    dataset: str
    num_clients: int
    download: bool
    datasets: ClientDatasets
    pool: SampleSet
    eval_test: SampleSet
    no_evaluation: str = ""

    def train_dataloader(self) -> DataLoader:
        """Return a loader with one item an epoch, because an epoch of the trainer is a communication round."""
        return DataLoader([self.datasets], batch_size=None)

    def class_counts(self) -> np.ndarray:
        """Count the images of each class that each client holds, or the pieces of each speaker.

        Returns:
            Counts (clients, classes); no columns for unlabelled data.
        """
        classes = np.arange(len(self.pool.classes))
        return np.stack([(each.labels.numpy()[:, None] == classes).sum(axis=0) for each in self.datasets.clients])

    @property
    def client_names(self) -> Sequence[str]:
        """Names of the clients: their numbers, unless the data say who they are."""
        return self.datasets.names or [str(client) for client in range(self.num_clients)]

    def table(self) -> str:
        """Return the partition as a table, one row a client."""
        sizes = np.array(self.datasets.sizes)
        return partition_table(self.class_counts(), sizes, self.pool.classes, self.client_names)


def divide(samples: SampleSet, partition: Partitioner, num_clients: int, rng: np.random.Generator) -> ClientDatasets:
    """Divide samples among clients; of how many, the data themselves may say."""
    names = partition.client_names(samples, num_clients)
    parts = partition(samples, len(names), rng)
    return ClientDatasets([samples.subset(torch.from_numpy(part)) for part in parts], names=names)


def cut(order: Tensor, groups: np.ndarray | None, first: int) -> tuple[Tensor, Tensor]:
    """Cut an order of samples in two, so that no group has samples in both parts.

    Groups come in the order of their first samples, each as a whole, until the first part has enough.

    Args:
        order: Positions of samples, int64 (N,).
        groups: Number of the group of each sample, (N,), by position; ``None`` if every sample stands for itself.
        first: Samples of the first part; whole groups may make it larger.
    """
    if groups is None or not first:
        return order[:first], order[first:]
    in_order = groups[order.numpy()]
    _, begins, inverse = np.unique(in_order, return_index=True, return_inverse=True)
    together = np.argsort(begins[inverse], kind="stable")
    order, ranks = order[torch.from_numpy(together)], begins[inverse][together]
    end = int(np.searchsorted(ranks, ranks[first - 1], side="right"))
    return order[:end], order[end:]


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
