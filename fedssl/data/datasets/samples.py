"""Training samples with labels, read in batches by index."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedssl.data.datasets.decoding import read_image
from fedssl.data.datasets.pixels import AS_DEFAULT, Decoding
from fedssl.data.datasets.source import Holders


class SampleSet(Dataset, ABC):
    """Samples of one shape with integer labels.

    A set is a list of rows into a storage that it may share with other sets. So ``subset`` copies no sample, and a
    federation of a thousand clients holds each sample once.

    Attributes:
        name: Name of the data set.
        labels: Class of each sample, int64 (N,); -1 for unlabelled samples.
        classes: Names of the classes, in the order of the labels; empty for unlabelled data.
        modality: Kind of the samples, ``images`` or ``text``.
        in_memory: True if the samples are held in memory.
        paths: File of each sample of the storage, bytes (M,); ``None`` for samples that are no files.
        holders: Who has each sample of the storage; ``None`` where the data do not say.
        account: What was read, left out and changed of the user's own files, in one line; empty for other data.

    Raises:
        ValueError: The labels are no whole numbers.
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
        self.paths: np.ndarray | None = None
        self.holders: Holders | None = None
        self.account = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one sample and its label (-1 if unlabelled)."""
        return self._read(self.rows[index].reshape(1))[0], int(self.labels[index])

    def gather(self, indices: Tensor) -> Tensor:
        """Return the samples at ``indices`` (B,) as one new tensor (B, ...)."""
        return self._read(self.rows[indices])

    def subset(self, indices: Tensor) -> Self:
        """Return the samples at ``indices`` (B,), in that order, as a set that shares this one's storage."""
        part = copy.copy(self)
        part.rows, part.labels = self.rows[indices], self.labels[indices]
        return part

    @property
    def files(self) -> list[Path]:
        """File of each sample; empty for samples that are no files."""
        return [] if self.paths is None else [Path(os.fsdecode(path)) for path in self.paths[self.rows.numpy()]]

    @property
    def groups(self) -> np.ndarray | None:
        """Number of each sample's group, (N,); ``None`` if every sample stands for itself."""
        if self.holders is None or self.holders.groups is None:
            return None
        return self.holders.groups[self.rows.numpy()]

    def check_encoder(self, spec: Any) -> None:
        """Compare the samples with the input that an encoder was built for.

        Args:
            spec: Description of the encoder, a ``layerwise.StagedSpec``.

        Raises:
            ValueError: The samples do not fit the encoder.
        """
        if spec.modality != self.modality:
            raise ValueError(f"{self.name} is {self.modality}, but the encoder {spec.name} is for {spec.modality}")

    @abstractmethod
    def _read(self, rows: Tensor) -> Tensor:
        """Return the samples at these rows of the storage (B, ...)."""


DECODE_BLOCK = 8
"""Images that a thread decodes in a row: handing them over one by one costs more."""


class ImageSet(SampleSet):
    """Images of one square size with integer labels.

    Attributes:
        image_size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
    """

    modality = "images"

    def __init__(self, name: str, labels: Tensor, classes: Sequence[str], image_size: int, channels: int) -> None:
        super().__init__(name, labels, classes)
        self.image_size = image_size
        self.channels = channels

    def __repr__(self) -> str:
        images = f"{len(self)} images of {self.channels}x{self.image_size}x{self.image_size}"
        return f"{type(self).__name__}({self.name!r}, {images}, {len(self.classes)} classes)"

    def check_encoder(self, spec: Any) -> None:
        """Compare size and channels with the encoder's input.

        Raises:
            ValueError: Size or channels differ.
        """
        super().check_encoder(spec)
        pairs = (("image_size", "image_size", "pixels a side"), ("channels", "in_channels", "channels"))
        for here, there, unit in pairs:
            own, wanted = getattr(self, here), getattr(spec, there)
            if own != wanted:
                raise ValueError(
                    f"{self.name} images have {own} {unit}, the encoder expects {wanted}: "
                    f"set --data.{here} {wanted} or --model.encoder.{there} {own}"
                )


class ArrayImages(ImageSet):
    """Images held in memory.

    Args:
        name: Name of the data set.
        images: Pixels, uint8 (N, C, H, H) with C 1 or 3. May be an expanded view.
        labels: Classes (N,), integers; -1 for unlabelled images.
        classes: Names of the classes.

    Raises:
        ValueError: The images have another type or shape, or the labels another length.
    """

    in_memory = True

    def __init__(self, name: str, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        shape = tuple(images.shape)
        if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3]:
            raise ValueError(f"images must be uint8 (N, 1 or 3, H, H), got {images.dtype} of shape {shape}")
        if tuple(labels.shape) != shape[:1]:
            raise ValueError(f"labels must have shape ({shape[0]},), got {tuple(labels.shape)}")
        super().__init__(name, labels, classes, image_size=shape[2], channels=shape[1])
        self.images = images

    def _read(self, rows: Tensor) -> Tensor:
        return self.images[rows]


class FileImages(ImageSet):
    """Images decoded from files on demand, several at a time in threads.

    Args:
        name: Name of the data set.
        paths: One file an image.
        labels: Classes (N,), integers; -1 for unlabelled images.
        classes: Names of the classes.
        image_size: Side in pixels.
        channels: 1 or 3.
        decoding: How files of any form become 8 bits and a square.

    Raises:
        ValueError: A file is no readable image; raised on reading, with its name.
    """

    in_memory = False

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        labels: Tensor,
        classes: Sequence[str],
        image_size: int,
        channels: int,
        decoding: Decoding = AS_DEFAULT,
    ) -> None:
        super().__init__(name, labels, classes, image_size, channels)
        self.decoding = decoding
        # one array of bytes: a million Path objects take hundreds of megabytes, copied into every forked worker
        self.paths: np.ndarray = np.array([os.fsencode(path) for path in paths], dtype=bytes)

    def _read(self, rows: Tensor) -> Tensor:
        with torch.inference_mode(False):  # an evaluation's mode does not reach the threads, which could not write then
            images = torch.empty(len(rows), self.channels, self.image_size, self.image_size, dtype=torch.uint8)

        def decode(block: Tensor) -> None:
            for position in block.tolist():
                path = Path(os.fsdecode(self.paths[rows[position]]))
                images[position] = read_image(path, self.image_size, self.channels, self.decoding)

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, torch.arange(len(rows)).split(DECODE_BLOCK)))
        return images
