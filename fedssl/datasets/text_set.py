"""Text as pieces of equal length over a fixed vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedssl.datasets.sample_set import SampleSet

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Line end and printable ASCII, with the indices from 1 on; 0 is every other character."""

VOCABULARY = 1 + len(CHARACTERS)
"""Fixed, so that nobody has to look at the clients' texts to agree on one, and pretrained weights fit any text."""

INDEX = {character: 1 + i for i, character in enumerate(CHARACTERS)}


class TextSet(SampleSet):
    """Pieces of T + 1 characters: T that are read, each with the one that follows it.

    The label of a piece is its speaker. A piece begins with the last character of the one before it, so that every
    character is predicted once.

    Args:
        name: The data set's name.
        texts: All that each speaker says.
        context: T.

    Raises:
        ValueError: ``context`` is below 1, or nobody says as much as one piece.
    """

    modality = "text"
    in_memory = True

    def __init__(self, name: str, texts: Mapping[str, str], context: int) -> None:
        if context < 1:
            raise ValueError(f"context must be at least 1 character, got {context}")
        lengths = np.array([len(text) for text in texts.values()])
        pieces = np.maximum(lengths - 1, 0) // context
        if not pieces.any():
            raise ValueError(f"{name} has no text of {context + 1} characters by one speaker: set a smaller context")
        begins = np.cumsum(lengths) - lengths
        starts = [begin + context * np.arange(number) for begin, number in zip(begins, pieces, strict=True)]
        labels = np.repeat(np.arange(len(texts)), pieces)
        super().__init__(name, torch.from_numpy(labels), list(texts))
        self.context = context
        self._starts = torch.from_numpy(np.concatenate(starts))
        self._characters = encode("".join(texts.values()))

    def __repr__(self) -> str:
        return f"TextSet({self.name!r}, {len(self)} pieces of {self.context} characters, {len(self.classes)} speakers)"

    def tails(self, validation: float, test: float) -> tuple[TextSet, TextSet, TextSet]:
        """Splits off the end of what each speaker says.

        Args:
            validation: Share of each speaker's pieces, rounded to whole ones, in front of the last part.
            test: Share of the last part.

        Returns:
            Beginning, validation and test.

        Raises:
            ValueError: A share is not above 0, both leave nothing, or all speakers say too little for one of the parts.
        """
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise ValueError(
                f"validation_fraction {validation} and test_fraction {test} must be above 0 and together below 1"
            )
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for speaker in range(len(self.classes)):
            own = (self.labels == speaker).nonzero().flatten()
            sizes = round(validation * len(own)), round(test * len(own))
            for part, indices in zip(parts, own.split([len(own) - sum(sizes), *sizes]), strict=True):
                part.append(indices)
        begin, middle, end = (self.subset(torch.cat(part)) for part in parts)
        if not (len(begin) and len(middle) and len(end)):
            raise ValueError(
                f"{self!r} is too short to hold out {validation:g} and {test:g} of it: raise validation_fraction and "
                "test_fraction, or set a smaller context"
            )
        return begin, middle, end

    def check_encoder(self, spec: Any) -> None:
        """Compares context and vocabulary.

        Raises:
            ValueError: They differ.
        """
        super().check_encoder(spec)
        if self.context != spec.context:
            raise ValueError(
                f"{self.name} is cut into pieces of {self.context} characters, the encoder reads {spec.context}: "
                f"set --data.context {spec.context} or --model.encoder.context {self.context}"
            )
        if spec.vocabulary != VOCABULARY:
            raise ValueError(f"text has a vocabulary of {VOCABULARY}, the encoder's is {spec.vocabulary}: leave it out")

    def _read(self, rows: Tensor) -> Tensor:
        """Indices of characters, int64 (B, T + 1)."""
        return self._characters[self._starts[rows][:, None] + torch.arange(self.context + 1)].long()


def encode(text: str) -> Tensor:
    """Indices of the characters, uint8 (N,)."""
    return torch.tensor([INDEX.get(character, 0) for character in text], dtype=torch.uint8)
