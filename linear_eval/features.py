"""Frozen features of labelled images, and measures of them without labels: collapse of one, similarity of two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, linalg, special


@dataclass(frozen=True)
class Features:
    """Features of N images with their class labels.

    Args:
        x: Features, float32, (N, D).
        y: Class labels, int64, (N,), each 0 or above, on the same device as ``x``.

    Raises:
        ValueError: A shape or dtype is wrong, there are no images, labels are negative, or values are not
            finite.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.ndim != 2 or x.dtype != torch.float32 or 0 in x.shape:
            raise ValueError(f"features must be non-empty float32 (N, D), got {x.dtype} {tuple(x.shape)}")
        if y.ndim != 1 or y.dtype != torch.int64 or len(y) != len(x):
            raise ValueError(f"labels must be int64 ({len(x)},), one per feature row, got {y.dtype} {tuple(y.shape)}")
        if negative := int((y < 0).sum()):
            raise ValueError(f"{negative} of {len(y)} labels are negative: evaluate on labelled images only")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(dim=1).sum())
            raise ValueError(f"{bad} of {len(x)} rows of features hold NaN or inf: the encoder has diverged")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """Width D of a feature."""
        return self.x.shape[1]

    def select(self, index: Tensor) -> "Features":
        """Return the rows at the given positions, int64 (M,), in that order."""
        return Features(self.x[index], self.y[index])

    def joined(self, other: "Features") -> "Features":
        """Return these features followed by others of the same width."""
        return Features(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))

    def shifted(self, mean: Tensor) -> "Features":
        """Return the features less a mean (D,)."""
        return Features(self.x - mean, self.y)


def feature_std(x: Tensor) -> float:
    """Compute the spread of L2-normalised features: 1 if isotropic, 0 if all point the same way.

    The standard deviation of each dimension over the images, averaged over dimensions, times sqrt(D). Source: Chen and
    He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1, which prints it without the factor
    sqrt(D). The deviation is the biased one (divided by N), so a single image has spread 0.

    Args:
        x: Features, (N, D) with N and D of 1 or more.
    """
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
    """
    singular = linalg.svdvals(x.double())
    total = singular.sum()
    if float(total) == 0.0:
        return 0.0
    return float(special.entr(singular / total).sum().exp())


def linear_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Compute the linear centred kernel alignment of every pair of representations, with an unbiased estimator.

    1 means equal up to rotation, reflection and one scale; 0 means unrelated. The estimate for unrelated
    representations may fall below 0. A constant representation is similar to nothing, not even to itself: 0.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3, with
    linear kernels. Deviation: HSIC by the unbiased estimator of Song et al., "Feature Selection via Dependence
    Maximization", JMLR 2012, section 2.3, because the usual one reports high similarity even for unrelated
    representations that are wide compared with the number of images.

    Args:
        first: L representations of the same N images, each (N, D_i) with N of 4 or more; widths may differ.
        second: M representations of the same N images.

    Returns:
        float64 (L, M), on the CPU.

    Raises:
        ValueError: A representation is no matrix, or the numbers of images differ or are below 4.
    """
    _check([*first, *second])
    if not first or not second:
        return torch.zeros(len(first), len(second), dtype=torch.float64)
    rows, columns = (torch.stack([_centred_gram(x) for x in part]) for part in (first, second))
    norms = torch.outer(rows.norm(dim=1), columns.norm(dim=1))
    return torch.where(norms > 0, rows @ columns.T / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def _centred_gram(x: Tensor) -> Tensor:
    """Return the inner products of N images, U-centred (zero diagonal, rows and columns sum to 0), flat (N * N,)."""
    x = x.double().cpu()
    # U-centring removes the mean anyway; removing it first, and scaling to norm 1, keeps rounding errors small.
    x = x - x.mean(dim=0)
    scale = x.norm()
    gram = (x / scale if scale > 0 else x) @ x.T / (scale if scale > 0 else 1.0)
    gram.fill_diagonal_(0.0)
    n = len(gram)
    means = gram.sum(dim=1) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    gram -= means[:, None] + means[None, :]
    return gram.fill_diagonal_(0.0).flatten()


def _check(representations: Sequence[Tensor]) -> None:
    shapes = [tuple(x.shape) for x in representations]
    if any(len(shape) != 2 or shape[0] < 4 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"representations must be matrices (N, D) of the same 4 or more images, got {shapes}")
