"""Partition of a data set among clients, drawn at random: independent, skewed in classes, or skewed in size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fedssl.data.datasets.samples import SampleSet
from fedssl.data.datasets.source import Loader
from ssl_methods import check_at_least

TABLE_CLIENTS = 20
TABLE_CLASSES = 20


class Partitioner(ABC):
    """Rule that gives every image of a data set to exactly one client.

    Attributes:
        uses_labels: True if the partition depends on the labels.
        min_size: Fewest images of a client.
        loader: Reader of the user's own folder, for a partition that says how it is laid out; ``None`` for others.
    """

    uses_labels: ClassVar[bool]
    min_size: int = 1
    loader: Loader | None = None

    def client_names(self, samples: SampleSet, num_clients: int) -> Sequence[str]:
        """Names of the clients: their numbers, unless the data say who they are."""
        return [str(client) for client in range(num_clients)]

    def __call__(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Divide the images.

        Args:
            samples: Images to divide, N of them, with their labels, files and groups.
            num_clients: Number of clients.
            rng: Source of all randomness; the same state gives the same division.

        Returns:
            For each client the sorted int64 indices of its images.

        Raises:
            ValueError: There are too few images for the clients, or no labels where they are needed.
        """
        self._check(samples.labels.numpy(), num_clients)
        parts = [np.sort(part).astype(np.int64) for part in self._divide(samples, num_clients, rng)]
        assert len(parts) == num_clients
        assert min(map(len, parts)) >= self.min_size
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(samples)))
        return parts

    def _check(self, labels: np.ndarray, num_clients: int) -> None:
        check_at_least(1, num_clients=num_clients)
        if num_clients * self.min_size > len(labels):
            raise ValueError(
                f"{num_clients} clients with at least {self.min_size} image(s) each need "
                f"{num_clients * self.min_size} images, but there are {len(labels)}: lower --data.clients"
            )
        if self.uses_labels and labels.min() < 0:
            raise ValueError(
                f"{type(self).__name__} divides by label, but {np.count_nonzero(labels < 0)} images "
                "have none (-1): use IID or PowerLaw"
            )

    @abstractmethod
    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Divide checked input; the order inside a client does not matter."""


class IID(Partitioner):
    """Independent and identically distributed images: shuffled and dealt out, client sizes differ by one at most."""

    uses_labels = False

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(rng.permutation(len(samples)), num_clients)


class Dirichlet(Partitioner):
    """Label skew: divides each class in proportions drawn from a symmetric Dirichlet distribution.

    Source: Yurochkin et al. 2019, Bayesian Nonparametric Federated Learning of Neural Networks, experiments; the skew
    is that of Hsu et al. 2019 (arXiv 1909.06335), who draw each client's mixture of classes instead and keep the
    clients equally large. Deviation: others draw again until every client has ``min_size`` images, which may never end;
    here the largest clients give to the smallest after a single draw.

    Args:
        beta: Concentration: a small value gives few classes a client, a large value equal clients.
        min_size: Fewest images of a client.

    Raises:
        ValueError: beta is not in (0, 1e6], or min_size is below 1.
    """

    uses_labels = True

    def __init__(self, beta: float, min_size: int = 1) -> None:
        if not 0 < beta <= 1e6:
            raise ValueError(f"beta must be in (0, 1e6], got {beta}; IID divides evenly")
        self.beta = beta
        check_at_least(1, min_size=min_size)
        self.min_size = min_size

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        labels = samples.labels.numpy()
        classes = np.unique(labels)
        members = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
        counts = np.empty((num_clients, len(classes)), dtype=np.int64)
        for column, indices in enumerate(members):
            shares = rng.dirichlet(np.full(num_clients, self.beta))
            counts[:, column] = apportion(shares, len(indices))
        raise_to_minimum(counts, self.min_size)
        pieces = [np.split(indices, np.cumsum(counts[:-1, column])) for column, indices in enumerate(members)]
        return [np.concatenate(client) for client in zip(*pieces, strict=True)]


class Shards(Partitioner):
    """Pathological label skew: sorts images by class, cuts equal shards, and deals each client the same number.

    Source: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, section 3
    (the pathological division). Deviation: no shard spans two classes, so a client never has more than
    ``classes_per_client`` classes even if the classes are not equally large. As there, a client may draw several shards
    of one class, and then has fewer.

    Args:
        classes_per_client: Number of shards of each client.

    Raises:
        ValueError: classes_per_client is below 1.
    """

    uses_labels = True

    def __init__(self, classes_per_client: int = 2) -> None:
        check_at_least(1, classes_per_client=classes_per_client)
        self.classes_per_client = classes_per_client

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        labels = samples.labels.numpy()
        classes, sizes = np.unique(labels, return_counts=True)
        total = num_clients * self.classes_per_client
        if not len(classes) <= total <= len(labels):
            raise ValueError(
                f"{num_clients} clients x classes_per_client {self.classes_per_client} = {total} shards, "
                f"must be from {len(classes)} (number of classes) to {len(labels)} (number of images)"
            )
        # Shards are apportioned to classes by size, at least one each, so that no shard spans two classes.
        per_class = apportion(sizes / len(labels), total)
        raise_to_minimum(per_class[:, None], 1)
        shards: list[np.ndarray] = []
        for label, number in zip(classes, per_class, strict=True):
            shards += np.array_split(rng.permutation(np.flatnonzero(labels == label)), number)
        hands = rng.permutation(total).reshape(num_clients, self.classes_per_client)
        return [np.concatenate([shards[i] for i in hand]) for hand in hands]


class WholeClasses(Partitioner):
    """Natural partition of a text, whose classes are its speakers: every class goes to one client as a whole.

    Classes are dealt out in random order, so that their numbers differ by one at most; client sizes differ as much as
    the classes do. LEAF (Caldas et al. 2018, arXiv 1812.01097) makes every speaker a client.
    """

    uses_labels = True

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        labels = samples.labels.numpy()
        classes = rng.permutation(np.unique(labels))
        if len(classes) < num_clients:
            raise ValueError(f"{len(classes)} classes cannot be dealt out to {num_clients} clients: use IID")
        return [np.flatnonzero(np.isin(labels, hand)) for hand in np.array_split(classes, num_clients)]


class PowerLaw(Partitioner):
    """Size skew: random images, client sizes proportional to rank^-exponent; the first client is the largest.

    Args:
        exponent: Exponent of the power law: 0 gives equal clients, 1 Zipf's law.
        min_size: Fewest images of a client; missing ones come from the largest clients.

    Raises:
        ValueError: exponent is negative or not finite, or min_size is below 1.
    """

    uses_labels = False

    def __init__(self, exponent: float, min_size: int = 1) -> None:
        check_at_least(0, exponent=exponent)
        self.exponent = exponent
        check_at_least(1, min_size=min_size)
        self.min_size = min_size

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        weights = np.exp(-self.exponent * np.log(np.arange(1, num_clients + 1)))
        sizes = apportion(weights / weights.sum(), len(samples))
        raise_to_minimum(sizes[:, None], self.min_size)
        return np.split(rng.permutation(len(samples)), np.cumsum(sizes[:-1]))


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Round ``shares * total`` to whole numbers (K,) that sum to ``total``: largest remainders, ties in order.

    Args:
        shares: Fractions (K,), not negative, sum 1.
        total: Sum of the result.
    """
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    # Largest remainders first. The stable sort gives ties to the lower index, so that every NumPy deals out the same.
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    assert counts.sum() == total
    return counts


def raise_to_minimum(counts: np.ndarray, min_size: int) -> None:
    """Move images, in place, until each row of ``counts`` (clients, classes) sums to ``min_size`` or more.

    Each image comes from the currently largest client, and there from its largest class, which changes the giver's skew
    least. The loop ends, because the largest client has more than ``min_size`` while any has less.
    """
    sizes = counts.sum(axis=1)
    assert sizes.sum() >= min_size * len(sizes)
    for taker in np.flatnonzero(sizes < min_size):
        while sizes[taker] < min_size:
            giver = sizes.argmax()
            column = counts[giver].argmax()
            counts[giver, column] -= 1
            counts[taker, column] += 1
            sizes[giver] -= 1
            sizes[taker] += 1


def partition_table(counts: np.ndarray, sizes: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> str:
    """Format a partition as plain text: one row a client with its images and the number of each class.

    Clients beyond the first 20 are summed in one row; with more than 20 classes only the number of different classes is
    shown. Unlabelled images have no class columns.

    Args:
        counts: Number of images of each class that each client has, (clients, classes).
        sizes: Number of images of each client, (clients,).
        classes: Names of the classes; empty for unlabelled images.
        names: Names of the clients.
    """
    shown, few = min(len(sizes), TABLE_CLIENTS), len(classes) <= TABLE_CLASSES
    groups = {names[client]: slice(client, client + 1) for client in range(shown)}
    if len(sizes) > shown:
        groups[f"{shown}-{len(sizes) - 1}"] = slice(shown, None)
    cells = [["client", "images", *(classes if few else ["classes"])]]
    for row, group in {**groups, "all": slice(None)}.items():
        held = counts[group].sum(axis=0)
        cells.append([row, *map(str, [sizes[group].sum(), *(held if few else [np.count_nonzero(held)])])])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in cells]
    spread = f"images a client: min {sizes.min()}, median {np.median(sizes):g}, max {sizes.max()}"
    return "\n".join([*lines, spread])
