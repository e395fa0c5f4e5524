"""Explore or exploit: scores of known clients by an upper confidence bound, in the form of Oort's code."""

from __future__ import annotations

import math

import numpy as np

EPSILON = 1e-12
"""Keeps utilities and probabilities above zero, and whole numbers whole."""


def exploration_share(start: float, decay: float, floor: float, round_: int) -> float:
    """Part of the slots that goes to clients never tried: ``max(start * decay ** round_, floor)``, rounds from 1."""
    return max(start * decay**round_, floor)


def normalised_rewards(rewards: np.ndarray, clip_quantile: float) -> np.ndarray:
    """Rewards of shape (N,) clipped at a quantile of theirs, then brought to [0, 1]; all 0 if they are equal."""
    clipped = np.minimum(rewards, np.quantile(rewards, clip_quantile))
    width = clipped.max() - clipped.min()
    return (clipped - clipped.min()) / width if width > 0 else np.zeros_like(clipped)


def confidence_bonus(weight: float, round_: int, last_rounds: np.ndarray) -> np.ndarray:
    """``sqrt(weight * ln(round) / last_round)`` of shape (N,), rounds from 1: more for clients not seen for long."""
    return np.sqrt(weight * math.log(round_) / last_rounds)


def best_pool(scores: np.ndarray, slots: int, cutoff: float) -> np.ndarray:
    """Positions whose score is at least ``cutoff`` times that of the best ``slots``-th, the best first.

    Equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= cutoff * scores[order[slots - 1]]]


def draw_by_weight(weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws ``size`` positions without replacement, each next one in proportion to its weight."""
    scaled = weights / max(weights.max(), np.finfo(np.float64).tiny) + EPSILON
    return rng.choice(len(weights), size, replace=False, p=scaled / scaled.sum())
