"""Confidence intervals of accuracies, from the number of test images alone."""

from __future__ import annotations

import math

Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % on either side."""


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """Compute the 95 % interval of an accuracy in percent, which holds the chance of the test images and no other.

    Another seed of the training may give more than that. Unlike the normal approximation it stays within 0 to 100 and
    is no point at either. Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22, 1927.

    Args:
        accuracy: Share of images classified correctly, in percent.
        images: Number of test images, 1 or more.
    """
    share, z2 = accuracy / 100, Z * Z / images
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(max(0.0, share * (1 - share) * z2 + z2 * z2 / 4)) / (1 + z2)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def is_above(accuracy: float, other: float, images: int) -> bool:
    """Tell if an accuracy is above another: if the 95 % interval of their difference is.

    The interval is that of independent samples. Two classifiers of the same images mostly err on the same ones, so it
    is too wide rather than too narrow. Source: Newcombe, "Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17, 1998, method 10.

    Args:
        accuracy: Accuracy in percent.
        other: Accuracy in percent to surpass, on as many images.
        images: Number of test images, 1 or more.
    """
    below, above = accuracy - wilson(accuracy, images)[0], wilson(other, images)[1] - other
    return accuracy - other > math.hypot(below, above)
