"""A fixed split of a data set that has no official one."""

import numpy as np


def stratified_split(labels: np.ndarray, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images so that every class gives the same fraction to the test part.

    Args:
        labels: Class of each image, (N,).
        test_fraction: Part of each class that goes to the test set, rounded to the nearest image.
        seed: The same seed gives the same split with every version of NumPy.

    Returns:
        Sorted indices of the train and of the test images.
    """
    # RandomState, not Generator: NumPy promises to keep only its stream unchanged, and a split is for ever
    random = np.random.RandomState(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
