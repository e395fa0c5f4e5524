"""Proposal of the settings that depend on what images are like, for a folder of the user's own.

What follows from the images alone is proposed: size, channels, patches, kind of views. Width and depth of the encoder,
batch and learning rate stay those of the configuration, where they were found with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedssl.data.datasets.decoding import open_image, read_image
from fedssl.data.datasets.listing import images_below
from fedssl.data.datasets.pixels import AS_DEFAULT

LOOKED_AT = 64
"""Images that are looked at."""
SIZES = (16, 32, 64, 128)
"""Sides that are proposed, in pixels; more than the last costs memory and time before it is known to be worth them."""
PATCHES = 8
"""Patches along a side: 64 in all, as LW-FedSSL has on CIFAR, so that a step costs the same at any size."""
LEAST_PATCH = 4
GREY = 16
"""Largest difference between the channels of an image that is grey but for its compression."""


@dataclass(frozen=True)
class Facts:
    """What images are like.

    Args:
        number: Number of images.
        side: Median of their shorter sides, in pixels.
        colour: True if some have colours.
    """

    number: int
    side: int
    colour: bool

    def __str__(self) -> str:
        return f"{self.number} images, shorter side {self.side}, {'in colour' if self.colour else 'grey'}"


@cache
def facts_of(root: Path) -> Facts | None:
    """Look at some images below a folder, evenly spaced; ``None`` if none of them can be read."""
    paths = images_below(root)
    sides, colour = [], False
    for position in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_AT)).astype(int)):
        try:
            with open_image(paths[position], AS_DEFAULT) as image:
                side = min(image.size)
            red, green, blue = read_image(paths[position], min(SIZES), 3).int()
        except (ValueError, OSError):  # told with its name when all files are looked at
            continue
        sides.append(side)
        colour |= bool(max((red - green).abs().max(), (green - blue).abs().max()) > GREY)
    return Facts(len(paths), int(median(sides)), colour) if sides else None


def propose(facts: Facts, said: Mapping[str, Any]) -> dict[str, Any]:
    """Propose settings by their names, without those that the user has set; data and encoder agree.

    Args:
        facts: What the images are like.
        said: Settings that the user has set for these images.
    """
    fitting = max([size for size in SIZES if size <= facts.side], default=SIZES[0])
    size = _number(said, "data.image_size", "model.encoder.image_size") or fitting
    channels = _number(said, "data.channels", "model.encoder.in_channels") or (3 if facts.colour else 1)
    proposal = {
        "data.image_size": size,
        "data.channels": channels,
        "model.encoder.image_size": size,
        "model.encoder.in_channels": channels,
        "model.encoder.options.patch_size": patch_size(size),
        "model.augment": "NaturalViews" if channels == 3 else "MedicalViews",
    }
    return {name: value for name, value in proposal.items() if value and name not in said}


def patch_size(image_size: int) -> int:
    """Return the divisor of an image size that gives nearest to ``PATCHES`` patches along a side; 0 if all are far."""
    divisors = [side for side in range(1, image_size + 1) if image_size % side == 0]
    near = [side for side in divisors if image_size / (2 * PATCHES) <= side <= 2 * image_size / PATCHES]
    return min(near, key=lambda side: abs(side - max(image_size / PATCHES, LEAST_PATCH)), default=0)


def _number(said: Mapping[str, Any], *names: str) -> int:
    """Return the first of the settings that is a positive number; 0 if none is."""
    return next((int(said[name]) for name in names if str(said.get(name)).isdecimal()), 0)
