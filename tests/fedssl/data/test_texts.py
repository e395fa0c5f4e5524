"""Texts: who says what, pieces, held-out ends, and where they come from."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from fedssl.data.datasets import VOCABULARY, TextSet, load_text, speeches
from fedssl.data.datasets.texts import CHARACTERS, SPEAKERS, encode, toy_dialogue
from layerwise import CausalTransformerSpec, EncoderSpec

PLAY = """First Citizen:
Before we proceed:
hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved.
"""


def decode(indices: torch.Tensor) -> str:
    return "".join(CHARACTERS[index - 1] if index else "?" for index in indices.tolist())


def test_speeches_are_collected_by_speaker() -> None:
    assert speeches(PLAY) == {
        "First Citizen": "Before we proceed:\nhear me speak.\nYou are all resolved.",
        "All": "Speak, speak.",
    }


def test_a_text_without_names_has_one_speaker() -> None:
    assert speeches("Once upon a time\nthere was this:\nthe end.") == {
        "(nobody)": "Once upon a time\nthere was this:\nthe end."
    }


def test_what_comes_before_the_first_name_is_kept() -> None:
    assert speeches("ACT I\n\nKING:\nAway!") == {"(nobody)": "ACT I", "KING": "Away!"}


def test_the_vocabulary_is_line_end_and_printable_ascii() -> None:
    assert VOCABULARY == 97
    assert encode("\n ~").tolist() == [1, 2, 96]
    assert encode("é\t€").tolist() == [0, 0, 0]


def test_pieces_overlap_by_one_character_and_stay_with_their_speaker() -> None:
    texts = TextSet("play", {"a": "abcdefg", "b": "xy", "c": "12345"}, context=2)
    assert [decode(text) for text in texts.gather(torch.arange(len(texts)))] == ["abc", "cde", "efg", "123", "345"]
    assert texts.labels.tolist() == [0, 0, 0, 2, 2]
    assert texts.gather(torch.tensor([0])).dtype == torch.int64


def test_ends_are_held_out_of_each_speaker() -> None:
    texts = TextSet("play", {"a": "a" * 21, "b": "b" * 11}, context=1)
    begin, middle, end = texts.tails(0.1, 0.2)
    assert [torch.bincount(part.labels).tolist() for part in (begin, middle, end)] == [[14, 7], [2, 1], [4, 2]]
    assert torch.cat([begin.rows, middle.rows, end.rows]).sort().values.tolist() == list(range(30))
    assert end.rows.tolist() == [16, 17, 18, 19, 28, 29]


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_impossible_fractions_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"must be above 0 and together below 1"):
        TextSet("play", {"a": "a" * 21}, 1).tails(*fractions)


def test_texts_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="play has no text of 9 characters by one speaker: set a smaller context"):
        TextSet("play", {"a": "12345678"}, 8)
    with pytest.raises(ValueError, match=r"2 pieces of 4 characters.* is too short to hold out 0.1 and 0.1"):
        TextSet("play", {"a": "123456789"}, 4).tails(0.1, 0.1)
    with pytest.raises(ValueError, match="context must be at least 1 character, got 0"):
        TextSet("play", {"a": "1"}, 0)


def test_text_and_encoder_must_agree() -> None:
    texts = TextSet("play", {"a": "123456789"}, 4)
    texts.check_encoder(CausalTransformerSpec(context=4))
    with pytest.raises(ValueError, match=r"pieces of 4 characters, the encoder reads 8: set --data.context 8"):
        texts.check_encoder(CausalTransformerSpec(context=8))
    with pytest.raises(ValueError, match="text has a vocabulary of 97, the encoder's is 50"):
        texts.check_encoder(CausalTransformerSpec(context=4, vocabulary=50))
    with pytest.raises(ValueError, match="play is text, but the encoder vit_tiny_patch16_224 is for images"):
        texts.check_encoder(EncoderSpec())


def test_the_toy_dialogue_never_changes() -> None:
    text = toy_dialogue()
    assert hashlib.sha256(text.encode()).hexdigest().startswith("87b822e23b65")
    assert set(speeches(text)) == set(SPEAKERS)
    assert 0 not in encode(text)


def test_a_text_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(PLAY)
    assert load_text("play.txt", tmp_path, download=False) == PLAY


def test_unreadable_and_unknown_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown text 'hamlet': known are toy_dialogue, tiny_shakespeare, and names"):
        load_text("hamlet", tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match=r"there is no text .*hamlet.txt: set --data.root"):
        load_text("hamlet.txt", tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match=r"tinyshakespeare/input.txt not found .*download=False.* Get it from"):
        load_text("tiny_shakespeare", tmp_path, download=False)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=r"bytes.txt is no text in UTF-8"):
        load_text("bytes.txt", tmp_path, download=False)


def test_tiny_shakespeare_is_read_and_split_by_speaker() -> None:
    root = os.environ.get("FEDSSL_DATA")
    if not root or not (Path(root) / "tinyshakespeare" / "input.txt").is_file():
        pytest.skip("needs tinyshakespeare/input.txt in FEDSSL_DATA")
    text = load_text("tiny_shakespeare", root, download=False)
    said = speeches(text)
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    assert said["ROMEO"].startswith("Is the day so young?\nAy me! sad hours seem long.")
    assert len(said) > 200
    assert not torch.count_nonzero(encode(text) == 0)
