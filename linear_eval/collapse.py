"""Collapse measures: the share of its space that a representation uses. They need no labels."""

import torch.nn.functional as F
from torch import Tensor, linalg, special


def feature_std(x: Tensor) -> float:
    """Compute the spread of L2-normalised features: 1 if isotropic, 0 if all point the same way.

    The standard deviation of each dimension over the images, averaged over dimensions, times sqrt(D). Source: Chen and
    He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1, which prints it without the factor
    sqrt(D). The deviation is the biased one (divided by N), so a single image has spread 0.

    Args:
        x: Features, (N, D) with N and D of 1 or more.

    Raises:
        ValueError: ``x`` is empty or not a matrix.
    """
    _check(x)
    normalised = F.normalize(x.double(), dim=1)
    return float(normalised.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5)


def rankme(x: Tensor) -> float:
    """Compute the effective rank: exp of the entropy of the singular values normalised to sum 1, from 1 to min(N, D).

    Source: Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations
    by Their Rank", ICML 2023, section 3. Features are not centred, as there, so constant ones other than zero have rank
    1. Two deviations: 0 log 0 counts as 0 instead of adding 1e-7 to each share, and features that are all zero have
    rank 0.

    Args:
        x: Features, (N, D) with N and D of 1 or more.

    Raises:
        ValueError: ``x`` is empty or not a matrix.
    """
    _check(x)
    singular = linalg.svdvals(x.double())
    total = singular.sum()
    if float(total) == 0.0:
        return 0.0
    return float(special.entr(singular / total).sum().exp())


def _check(x: Tensor) -> None:
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"features must be a non-empty matrix (N, D), got shape {tuple(x.shape)}")
