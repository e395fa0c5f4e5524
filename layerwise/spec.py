"""Base of the descriptions from which encoders are built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from layerwise.encoder import StagedEncoder


class StagedSpec(ABC):
    """Description of an encoder, enough to build it again anywhere.

    Subclasses are dataclasses, but this base is not, so that the command line lets a ``class_path`` choose one.

    Attributes:
        modality: Kind of input, ``images`` or ``text``.
        input_dtype: Data type of the input.
    """

    modality: ClassVar[str]
    input_dtype: ClassVar[torch.dtype]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the architecture."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch: (C, H, W) of an image, (T,) of a text."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of the features besides their width: () for one vector an input, (T,) for one a character."""
        return ()

    @abstractmethod
    def build(self) -> StagedEncoder:
        """Build the encoder, with random weights drawn from the global generator.

        Raises:
            ValueError: The settings do not agree with each other, or with the pretrained weights.
            FileNotFoundError: The pretrained weights do not exist.
        """
