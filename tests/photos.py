"""Photos of one's own, and what is proposed for them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PROPOSED = {
    "data.image_size": 64,
    "data.channels": 3,
    "model.encoder.image_size": 64,
    "model.encoder.in_channels": 3,
    "model.encoder.options.patch_size": 8,
    "model.augment": "NaturalViews",
}


def save_photos(folder: Path, colours: Sequence[str]) -> None:
    """Writes an image of 80 x 100 pixels in each colour."""
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (80, 100), colour).save(folder / f"{number}.jpg")
