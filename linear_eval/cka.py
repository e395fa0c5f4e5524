"""Similarity of two representations of the same images (centred kernel alignment)."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
