"""Losses as pure functions of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURES = (1e-3, 1e3)
"""Allowed temperatures: below, a softmax of cosines is a maximum; above, it is uniform."""


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE: each query must recognise the key at its own place among all keys of the batch.

    Plain cross-entropy over cosine similarities / temperature (LW-FedSSL algorithm 2). MoCo v3's own code
    multiplies by 2 * temperature; the paper followed here does not.

    Args:
        query: Embeddings (B, D).
        key: Embeddings (B, D); row i is the positive of query i, the other rows are its negatives.
        temperature: Divides the cosine similarities.

    Returns:
        Mean loss, a scalar.
    """
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent: each of the 2B views must recognise the other view of its image among all others of the batch.

    The same mathematics as lightly's ``NTXentLoss`` without a memory bank (SimCLR, arXiv 2002.05709, equation 1), but
    without boolean indexing: its shapes do not depend on data, so that its cost can be planned without data.

    Args:
        first: Embeddings (B, D) of one view of each image.
        second: Embeddings (B, D) of the other view.
        temperature: Divides the cosine similarities.

    Returns:
        Mean loss over the 2B views, a scalar.
    """
    count = len(first)
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = views @ views.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=views.device)
    partner = torch.arange(2 * count, device=views.device).roll(count)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), partner)
