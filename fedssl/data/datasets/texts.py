"""Texts by name, their speakers, and their cut into pieces of equal length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.utils import download_url

from fedssl.data.datasets.samples import SampleSet
from fedssl.data.datasets.source import Loader

TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_MD5 = "6fb458f1232090904fb40fe944165e91"
TEXTS = ("toy_dialogue", "tiny_shakespeare")


def load_text(name: str, root: str | Path, download: bool) -> str:
    """Load a text.

    Args:
        name: ``toy_dialogue``, made up on the spot; ``tiny_shakespeare``, 1.1 million characters of Shakespeare's plays
            (Karpathy's char-rnn); or a file below the root that ends in ``.txt``, in UTF-8.
        root: Folder of all data sets.
        download: Allow the download of tiny Shakespeare; its checksum is verified.

    Raises:
        ValueError: The name is unknown, or the file is not in UTF-8.
        FileNotFoundError: The file is absent and could not be downloaded; the message tells where to get it.
    """
    root = Path(root).expanduser().absolute()
    if name == "toy_dialogue":
        return toy_dialogue()
    if name == "tiny_shakespeare":
        return TINY_SHAKESPEARE.load(root, "train", download)
    if not name.endswith(".txt"):
        raise ValueError(f"unknown text {name!r}: known are {', '.join(TEXTS)}, and names of files that end in .txt")
    if not (root / name).is_file():
        raise FileNotFoundError(f"there is no text {root / name}: set --data.root to its folder")
    return _read(root / name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


TINY_SHAKESPEARE = Loader(
    lambda root, split: _read(root / "tinyshakespeare" / "input.txt"),
    "tiny Shakespeare",
    TINY_SHAKESPEARE_URL,
    "tinyshakespeare/input.txt",
    lambda root: download_url(TINY_SHAKESPEARE_URL, root / "tinyshakespeare", "input.txt", md5=TINY_SHAKESPEARE_MD5),
)


CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Line end and printable ASCII, with the indices from 1 on; 0 stands for every other character."""

VOCABULARY = 1 + len(CHARACTERS)
"""Vocabulary size. It is fixed, so that nobody must inspect the clients' texts, and pretrained weights fit any text."""

INDEX = {character: 1 + i for i, character in enumerate(CHARACTERS)}


class TextSet(SampleSet):
    """Pieces of text with T + 1 characters: T inputs, each with the character that follows it.

    The label of a piece is its speaker. A piece begins with the last character of the one before, so that every
    character is predicted once.

    Args:
        name: Name of the data set.
        texts: Text of each speaker.
        context: T, the context length in characters.

    Raises:
        ValueError: ``context`` is below 1, or no speaker's text fills one piece.
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
        """Split off the end of each speaker's text.

        Args:
            validation: Share of each speaker's pieces, rounded to whole ones, before the test part.
            test: Share of each speaker's pieces in the test part, the last one.

        Returns:
            Training, validation and test pieces.

        Raises:
            ValueError: A share is not above 0, both leave nothing to train on, or a part is empty because the texts are
                too short.
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
        """Compare context and vocabulary with the encoder's.

        Raises:
            ValueError: Context or vocabulary differ.
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
        """Return the indices of characters, int64 (B, T + 1)."""
        return self._characters[self._starts[rows][:, None] + torch.arange(self.context + 1)].long()


def encode(text: str) -> Tensor:
    """Return the indices of the characters, uint8 (N,)."""
    return torch.tensor([INDEX.get(character, 0) for character in text], dtype=torch.uint8)


HEADING = re.compile(r"(?:\A\n*|\n\n+)([^\n:]{1,40}):\n")
"""Pattern of a speaker's heading: a name and a colon on a line of its own, after an empty line or at the beginning."""

NOBODY = "(nobody)"
"""Speaker of the text before the first ``NAME:`` line."""


def speeches(text: str) -> dict[str, str]:
    """Collect each speaker's text, one speech after the other on new lines, without the names.

    Args:
        text: Speeches below lines ``NAME:``, with empty lines between them. Without such lines the whole text belongs
            to ``NOBODY``.

    Returns:
        Text by speaker, in the order of first appearance.
    """
    nobody, *rest = HEADING.split(text)
    found = {NOBODY: [nobody]} if nobody.strip() else {}
    for speaker, speech in zip(rest[::2], rest[1::2], strict=True):
        found.setdefault(speaker, []).append(speech.strip("\n"))
    return {speaker: "\n".join(said) for speaker, said in found.items()}


SEED = 2411
LENGTH = 36_000
"""Approximate length in characters."""

SPEAKERS = {
    "Miller": ("grain flour sack wheel", "grind bring weigh"),
    "Sailor": ("boat rope sail anchor", "mend pull follow"),
    "Baker": ("bread oven loaf crust", "bake smell cut"),
    "Gardener": ("rose tree seed fence", "plant water paint"),
    "Smith": ("iron hammer horse nail", "strike bend heat"),
    "Doctor": ("herb bottle patient fever", "cure shake count"),
    "Weaver": ("wool thread loom shirt", "spin fold colour"),
    "Shepherd": ("sheep lamb dog hill", "guard lead find"),
}
"""Nouns and verbs of each speaker."""

ADJECTIVES = "old new small heavy red good"
OPENINGS = ("", "today ", "my friend, ", "in the morning ", "if it rains, ")


def toy_dialogue(length: int = LENGTH) -> str:
    """Generate speeches of one to three sentences; verbs agree with the number of their subject.

    The first speaker says most and the last one least, by Zipf's law with exponent 0.5.

    Args:
        length: Least number of characters; the last speech is finished.
    """
    # RandomState, not Generator: NumPy promises to keep only its stream unchanged
    random = np.random.RandomState(SEED)
    names = list(SPEAKERS)
    shares = 1 / np.sqrt(1 + np.arange(len(names)))
    written: list[str] = []
    while sum(map(len, written)) < length:
        name = names[random.choice(len(names), p=shares / shares.sum())]
        said = [sentence(name, random) for _ in range(random.randint(1, 4))]
        written.append(f"{name}:\n{' '.join(said)}\n\n")
    return "".join(written)


def sentence(speaker: str, random: np.random.RandomState) -> str:
    """Generate one sentence about a speaker's trade."""
    nouns, verbs = (words.split() for words in SPEAKERS[speaker])
    adjectives, many = ADJECTIVES.split(), random.randint(2)
    subject, object_, verb = random.choice(nouns), random.choice(nouns), random.choice(verbs)
    described = f"{random.choice(adjectives)} {object_}" if random.randint(2) else object_
    who, does = ("we", verb) if many else (f"the {subject} man", f"{verb}s")
    opening = OPENINGS[random.randint(len(OPENINGS))]
    return f"{opening}{who} {does} the {described}.".capitalize()
