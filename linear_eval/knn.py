"""Weighted k-nearest-neighbour classification of features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from linear_eval.features import Features

CHUNK_BYTES = 64 * 2**20
"""Bytes of the similarity matrix held at once, at least one row of it."""


def knn_predict(
    bank: Features,
    query: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Classify features by the weighted vote of their nearest labelled features.

    The k features of the bank with the largest cosine similarity s vote for their class with weight exp(s /
    temperature). Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018, section 3.4, which votes with k = 200; k = 20 is the later habit (Caron et al., DINO, 2021). Weights are taken
    relative to the nearest neighbour's, which leaves the winner unchanged and cannot overflow at a low temperature.

    Ties are settled the same way every time: of equally similar bank features the earlier one is a neighbour, and of
    classes with equal votes the lower one wins.

    Args:
        bank: Labelled features, (N, D).
        query: Features to classify, (M, D).
        num_classes: Number of classes; the labels of the bank must be below it.
        k: Number of neighbours. A number above N lets all N features vote.
        temperature: Sharpness of the weights, above 0.

    Returns:
        Predicted classes, int64 (M,), on the query's device.

    Raises:
        ValueError: The query is not (M, D), a label of the bank is num_classes or above, or k or temperature is not
            above 0.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k must be at least 1 and temperature above 0, got {k} and {temperature}")
    if query.ndim != 2 or query.shape[1] != bank.dim:
        raise ValueError(f"query must be (M, {bank.dim}) like the bank's features, got {tuple(query.shape)}")
    if int(bank.y.max()) >= num_classes:
        raise ValueError(f"labels must be below num_classes = {num_classes}, got {int(bank.y.max())}")
    rows = max(1, CHUNK_BYTES // (4 * len(bank)))
    directions, predicted = F.normalize(bank.x, dim=1), []
    for chunk in query.split(rows):
        values, index = _nearest(directions, chunk, k)
        predicted.append(_vote(values, bank.y[index], num_classes, temperature))
    return torch.cat(predicted).to(query.device)


def nearest(bank: Features, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k features of the bank with the largest cosine similarity, most similar first.

    Args:
        bank: Features, (N, D).
        query: Features (M, D), few enough for a similarity matrix (M, N).
        k: Number of neighbours, capped at N; of equally similar features the earlier ones are taken.

    Returns:
        Similarities and positions in the bank, both (M, min(k, N)), on the bank's device.
    """
    return _nearest(F.normalize(bank.x, dim=1), query, k)


def _nearest(directions: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the nearest of normalised features (N, D): normalising them for every chunk would double the time."""
    similarity = F.normalize(query.to(directions), dim=1) @ directions.T
    k = min(k, len(directions))
    values, index = similarity.topk(k, dim=1)
    ambiguous = ((similarity >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(ambiguous):  # topk promises no order among equals, a stable sort does, but it is far slower
        ordered, columns = similarity[ambiguous].sort(dim=1, descending=True, stable=True)
        values[ambiguous], index[ambiguous] = ordered[:, :k], columns[:, :k]
    return values, index


def _vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Return the class with the largest sum of weights; similarity (descending) and labels are both (B, k)."""
    weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
    votes = weights.new_zeros(len(weights), num_classes)
    for column in range(labels.shape[1]):  # one neighbour at a time: no two additions meet, so the sum has one order
        votes.scatter_add_(1, labels[:, column : column + 1], weights[:, column : column + 1])
    return votes.argmax(dim=1)
