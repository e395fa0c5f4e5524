"""Communities of clients with similar updates, and the slots of a round that each community gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import networkx as nx

ROUNDING = 1e-9
"""Tolerance between similarities that would be equal without rounding."""


def cosine_similarities(updates: np.ndarray) -> np.ndarray:
    """Cosines between all pairs of updates.

    Args:
        updates: Updates of the clients, (N, D); a row of zeros is similar to none.

    Returns:
        A matrix of shape (N, N).
    """
    vectors = np.asarray(updates, dtype=np.float64)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    # Scaled by the largest entry first: the squares within the norm of a tiny update would underflow to zero.
    vectors = vectors / np.where(largest > 0, largest, 1.0)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1.0)
    return np.clip(vectors @ vectors.T, -1.0, 1.0)


def similarity_graph(clients: Sequence[int], similarities: np.ndarray) -> nx.Graph:
    """Graph of clients whose edges weigh ``max(0, cosine)``; edges lighter than the mean over all pairs are left out.

    Edges as heavy as the mean stay, so that clients which are all alike stay together.
    """
    first, second = np.triu_indices(len(clients), k=1)
    weights = np.maximum(similarities[first, second], 0.0)
    threshold = max(weights.mean() - ROUNDING, ROUNDING) if len(weights) else 0.0
    import networkx as nx  # takes a third of a second

    graph = nx.Graph()
    graph.add_nodes_from(clients)
    for i, j, weight in zip(first.tolist(), second.tolist(), weights.tolist(), strict=True):
        if weight >= threshold:
            graph.add_edge(clients[i], clients[j], weight=weight)
    return graph


def find_communities(clients: Sequence[int], updates: np.ndarray, seed: int) -> list[list[int]]:
    """Communities by Louvain's method (Blondel et al. 2008, arXiv 0803.0476) on the similarity graph.

    Args:
        clients: Client ids in ascending order, N of them.
        updates: Updates of these clients, (N, D).
        seed: Seed of the order in which Louvain's method visits the clients.

    Returns:
        Each community's ids ascending, the community of the smallest id first.
    """
    graph = similarity_graph(clients, cosine_similarities(updates))
    import networkx as nx

    return sorted(sorted(community) for community in nx.community.louvain_communities(graph, seed=seed))


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
    quotas = [Fraction(0)] * len(weights)
    left, unfilled = Fraction(size), set(range(len(weights)))
    # Each pass fills the groups whose proportional quota reaches their capacity and divides the rest anew. The pass
    # in which no group is full hands out everything that is left.
    while left:
        parts = {i: Fraction(weights[i]) for i in unfilled}
        if not any(parts.values()):
            parts = dict.fromkeys(unfilled, Fraction(1))
        unit = left / sum(parts.values())
        shares = {i: unit * part for i, part in parts.items()}
        full = {i for i in unfilled if shares[i] >= capacities[i]}
        for i in full or unfilled:
            quotas[i] = min(shares[i], Fraction(capacities[i]))
        left = left - sum(capacities[i] for i in full) if full else Fraction(0)
        unfilled -= full
    return quotas
