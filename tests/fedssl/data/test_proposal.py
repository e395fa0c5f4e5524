"""Proposal of settings for a folder of one's own."""

from pathlib import Path

import pytest
from photos import PROPOSED, save_photos

from fedssl.data.proposal import Facts, facts_of, patch_size, propose


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of 80 x 100 pixels, one of them in colour, and a file that is none."""
    root = tmp_path / "my photos ü"
    save_photos(root / "deep", ["grey", "red", "white"])
    (root / "none.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("facts", "size", "patch", "views"),
    [
        (Facts(9, 8, colour=False), 16, 4, "MedicalViews"),
        (Facts(9, 33, colour=True), 32, 4, "NaturalViews"),
        (Facts(9, 480, colour=False), 128, 16, "MedicalViews"),
    ],
)
def test_settings_follow_from_the_images(facts: Facts, size: int, patch: int, views: str) -> None:
    proposal = propose(facts, {})
    assert proposal["data.image_size"] == proposal["model.encoder.image_size"] == size
    assert proposal["data.channels"] == proposal["model.encoder.in_channels"] == (3 if facts.colour else 1)
    assert (proposal["model.encoder.options.patch_size"], proposal["model.augment"]) == (patch, views)


def test_what_is_set_once_holds_for_data_and_encoder() -> None:
    assert propose(Facts(9, 480, colour=True), {"model.encoder.image_size": "28", "data.channels": 1}) == {
        "data.image_size": 28,
        "model.encoder.in_channels": 1,
        "model.encoder.options.patch_size": 4,
        "model.augment": "MedicalViews",
    }
    assert propose(Facts(9, 480, colour=True), {**PROPOSED, "data.image_size": None}) == {}
    assert [patch_size(size) for size in (8, 16, 32, 96, 97)] == [2, 4, 4, 12, 0]


def test_images_are_looked_at(photos: Path) -> None:
    assert facts_of(photos) == Facts(4, 80, colour=True)
    (photos / "deep" / "1.jpg").unlink()
    facts_of.cache_clear()
    assert facts_of(photos) == Facts(3, 80, colour=False)
    assert facts_of(photos / "deep" / "nothing") is None
