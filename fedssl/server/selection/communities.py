"""Communities of clients with similar updates, and the slots of a round that each community gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

ROUNDING = 1e-9
"""Tolerance between similarities that would be equal without rounding."""


def find_communities(clients: Sequence[int], updates: np.ndarray, seed: int) -> list[list[int]]:
    """Communities by Louvain's method (Blondel et al. 2008, arXiv 0803.0476) on the similarity graph.

    Edges weigh ``max(0, cosine)``; those lighter than the mean over all pairs are left out. Edges as heavy as the mean
    stay, so that clients which are all alike stay together.

    Args:
        clients: Client ids in ascending order, N of them.
        updates: Updates of these clients, (N, D).
        seed: Seed of the order in which Louvain's method visits the clients.

    Returns:
        Each community's ids ascending, the community of the smallest id first.
    """
    import networkx as nx  # takes a third of a second

    # scikit-learn takes rows below 1e-15 for zeros: the largest entry of each becomes 1 first
    vectors = np.asarray(updates, dtype=np.float64)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    cosines = cosine_similarity(vectors / np.where(largest > 0, largest, 1.0))
    weights = np.triu(np.maximum(cosines, 0.0), k=1)
    mean = weights.sum() / max(1, math.comb(len(clients), 2))
    graph = nx.from_numpy_array(np.where(weights >= max(mean - ROUNDING, ROUNDING), weights, 0.0))
    communities = nx.community.louvain_communities(nx.relabel_nodes(graph, dict(enumerate(clients))), seed=seed)
    return sorted(sorted(community) for community in communities)


def proportional_split(size: int, weights: Sequence[float], capacities: Sequence[int], offset: float) -> list[int]:
    """Divide ``size`` slots among groups in proportion to their weights, none above its capacity.

    A group gets its quota rounded down or up. Over uniform offsets its mean is the quota (systematic sampling), so that
    small groups have their turn too.

    Args:
        size: Number of slots; at most the sum of the capacities.
        weights: Weights of the groups, not negative; groups of weight 0 come last.
        capacities: Largest number of slots of each group.
        offset: Random number in [0, 1).
    """
    quotas = capped_quotas(size, weights, capacities)
    bounds = [math.floor(bound + Fraction(offset)) for bound in accumulate(quotas, initial=Fraction(0))]
    return [end - start for start, end in pairwise(bounds)]


def capped_quotas(size: int, weights: Sequence[float], capacities: Sequence[int]) -> list[Fraction]:
    """Exact quotas of ``size`` in proportion to the weights; groups that are not full share the excess of full ones."""
    # Fractions, since quotas in floating point may add up to a little less than ``size`` and lose a slot.
    assert 0 <= size <= sum(capacities)
    exact = [Fraction(weight) for weight in weights]
    fills = [capacity / weight if weight else math.inf for weight, capacity in zip(exact, capacities, strict=True)]
    quotas, left, weight = [Fraction(0)] * len(exact), Fraction(size), sum(exact)
    # In the order in which groups fill up: what a full group cannot take is divided among those after it.
    order = sorted(range(len(exact)), key=lambda i: (fills[i], capacities[i]))
    for position, i in enumerate(order):
        part = exact[i] / weight if weight else Fraction(1, len(order) - position)
        quotas[i] = min(left * part, Fraction(capacities[i]))
        left, weight = left - quotas[i], weight - exact[i]
    return quotas
