"""Handwritten digits, 1,797 grey images of 8x8 that come with scikit-learn: no download."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fedssl.data.datasets.source import Arrays, Loader, stratified_split

SPLIT_SEED = 1797


def read_digits(root: Path, split: str, download: bool) -> Arrays:
    """Read the digits with a fixed, stratified 80/20 split; ``root`` and ``download`` do not matter.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part). Values 0..16 are
    scaled to 0..255.
    """
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    train, test = stratified_split(digits.target, test_fraction=0.2, seed=SPLIT_SEED)
    chosen = train if split == "train" else test
    return Arrays(images[chosen], digits.target[chosen], [str(d) for d in range(10)])


DIGITS = Loader(read_digits)
