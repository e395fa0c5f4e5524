"""What clients train on: samples with labels, read in batches by index."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset


class SampleSet(Dataset, ABC):
    """Samples of one shape with integer labels.

    A set is a list of rows into a storage that it may share with other sets, so that ``subset`` copies no sample: a
    federation of a thousand clients holds every one once.

    Attributes:
        name: The data set's name.
        labels: Class of each sample, int64 (N,); -1 where there is none.
        classes: Names of the classes, in the order of the labels; empty for unlabelled data.
        modality: What the samples are, ``images`` or ``text``.
        in_memory: Whether the samples are held in memory.

    Raises:
        ValueError: Labels are no whole numbers.
    """

    modality: ClassVar[str]
    in_memory: ClassVar[bool]

    def __init__(self, name: str, labels: Tensor, classes: Sequence[str]) -> None:
        if labels.is_floating_point() and not bool((labels == labels.floor()).all() and labels.isfinite().all()):
            raise ValueError(f"labels of {name} must be whole numbers")
        self.name = name
        self.labels = labels.to(torch.int64)
        self.classes = tuple(classes)
        self.rows = torch.arange(len(labels))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample, and its label (-1 without one)."""
        return self._read(self.rows[index].reshape(1))[0], int(self.labels[index])

    def gather(self, indices: Tensor) -> Tensor:
        """Returns the samples at ``indices`` (B,) as one new tensor (B, ...)."""
        return self._read(self.rows[indices])

    def subset(self, indices: Tensor) -> Self:
        """Returns the samples at ``indices`` (B,), in that order, as a set that shares this one's storage."""
        part = copy.copy(self)
        part.rows, part.labels = self.rows[indices], self.labels[indices]
        return part

    def check_encoder(self, spec: Any) -> None:
        """Compares the samples with what an encoder was built for.

        Args:
            spec: A :class:`layerwise.StagedSpec`.

        Raises:
            ValueError: They do not fit it.
        """
        if spec.modality != self.modality:
            raise ValueError(f"{self.name} is {self.modality}, but the encoder {spec.name} is for {spec.modality}")

    @abstractmethod
    def _read(self, rows: Tensor) -> Tensor:
        """The samples at these rows of the storage (B, ...)."""
