"""What an encoder is built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from layerwise.encoder import StagedEncoder


class StagedSpec(ABC):
    """Base of the descriptions of encoders; enough to build one again anywhere.

    This is no dataclass, though those derived from it are: the command line then lets a ``class_path`` choose one.

    Attributes:
        modality: What is encoded, ``images`` or ``text``.
        input_dtype: Type of the input.
    """

    modality: ClassVar[str]
    input_dtype: ClassVar[torch.dtype]

    @property
    @abstractmethod
    def name(self) -> str:
        """The architecture."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch: (C, H, W) of an image, (T,) of a text."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape that features have besides their width: () for one vector an input, (T,) for one a character."""
        return ()

    @abstractmethod
    def build(self) -> StagedEncoder:
        """The encoder, its random weights drawn from the global generator.

        Raises:
            ValueError: The settings do not agree with each other, or with the pretrained weights.
            FileNotFoundError: There are no pretrained weights where the spec says.
        """
