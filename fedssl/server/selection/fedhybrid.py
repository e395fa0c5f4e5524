"""FedHybrid's client selector (arXiv 2510.11400): memory, data and compute utility, explored as a bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedssl.server.selection.selector import Candidate, LossSelector, by_id
from fedssl.utils.units import parse_bytes

# Constants of the exploration: defaults of Oort's code (training/argParser.py), which uses BONUS as a literal.
EXPLORATION, EXPLORATION_DECAY, EXPLORATION_FLOOR = 0.9, 0.95, 0.2
"""Fraction of the slots that explores at the start, its factor from round to round, and its smallest value."""

CLIP_QUANTILE = 0.98
"""Quantile at which utilities are clipped."""

CUTOFF = 0.7
"""Known clients with at least this part of the score of the last slot may be drawn."""

BONUS = 0.1
"""Weight of the bonus for clients not seen for long."""

WINDOW = 5
"""Size of the pool of new clients, in multiples of their slots; the pool has the best memory and compute."""

EPSILON = 1e-12
"""Lower bound of utilities and probabilities, and tolerance when a product is rounded down."""


class FedHybridSelector(LossSelector):
    """Selector that prefers clients with high loss, enough memory and fast devices, and keeps trying new ones.

    The utility is data times memory times compute, as the paper's reviews print it. The form of the memory term and the
    exploration are **our reading**. The exploration follows Oort's code (Lai et al. 2021, arXiv 2010.06081), which the
    paper seems to extend. A falling fraction of the slots goes to clients never tried, drawn in proportion to memory
    times compute. The other slots are drawn from the best known clients in proportion to their score: the clipped and
    normalised utility plus a bonus for clients not seen for long.

    Deviations: squared losses are of batches, not samples; the compute utility is images a second of the predicted
    round, transfers included, instead of one over the summed times of the model's unique operators. A client whose
    loss is not finite has the lowest utility until its next good round. A client that was chosen but never answered
    counts as tried, with the mean loss of the others.

    Args:
        full_memory: Memory that training the whole model takes without saving any, as a size such as ``512MiB``.

    Raises:
        ValueError: ``full_memory`` is not a size.
    """

    def __init__(self, full_memory: str) -> None:
        self.full_memory = parse_bytes(full_memory)

    def begin(self, num_clients: int, seed: int) -> None:
        """Forget all losses: no client has been tried."""
        super().begin(num_clients, seed)
        self._last_rounds: dict[int, int] = {}

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Choose some of the best known candidates and some that were never tried."""
        known = [c for c in by_id(candidates) if c.client_id in self._last_rounds]
        new = [c for c in by_id(candidates) if c.client_id not in self._last_rounds]
        size = min(size, len(candidates))
        exploited = min(math.floor(size * (1 - exploration_share(round_ + 1)) + EPSILON), len(known))
        explored = min(size - exploited, len(new))
        chosen = self._exploit(known, size - explored, round_ + 1, rng) + self._explore(new, explored, rng)
        # Noted now and not in ``observe``: a client that never answers would count as new for ever.
        self._last_rounds.update((candidate.client_id, round_ + 1) for candidate in chosen)
        return sorted(candidate.client_id for candidate in chosen)

    def state_dict(self) -> dict[str, Any]:
        """Losses, and the round in which each client was last chosen."""
        return super().state_dict() | {"last rounds": dict(self._last_rounds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore losses and rounds."""
        super().load_state_dict(state)
        self._last_rounds = dict(state["last rounds"])

    def _exploit(
        self, known: Sequence[Candidate], slots: int, round_: int, rng: np.random.Generator
    ) -> list[Candidate]:
        if not slots:
            return []
        losses = np.array([max(self.squared_loss(c.client_id), EPSILON) for c in known])
        last_rounds = np.array([self._last_rounds[c.client_id] for c in known])
        rewards = normalised_rewards(losses * self._device_utilities(known))
        scores = rewards + confidence_bonus(round_, last_rounds)
        pool = best_pool(scores, slots)
        return [known[pool[position]] for position in draw_by_weight(scores[pool], slots, rng)]

    def _explore(self, new: Sequence[Candidate], slots: int, rng: np.random.Generator) -> list[Candidate]:
        if not slots:
            return []
        utilities = self._device_utilities(new)
        pool = np.argsort(-utilities, kind="stable")[: WINDOW * slots]
        return [new[pool[position]] for position in draw_by_weight(utilities[pool], slots, rng)]

    def _device_utilities(self, clients: Sequence[Candidate]) -> np.ndarray:
        """Memory utility times compute utility of each client, (N,)."""
        memory = np.array([memory_utility(client.memory_bytes, self.full_memory) for client in clients])
        return memory * np.array([compute_utility(client.num_images, client.seconds) for client in clients])


def memory_utility(available: float, full: float) -> float:
    """Memory term of a client's utility: ``min(1, available / full)``, in bytes.

    The paper's reviews print an indicator as a factor, once each way: one form excludes every device with enough
    memory, the other every device with too little. Our reading takes it as the exponent, as in Oort. Memory that is
    unknown is infinite and counts as enough.
    """
    return min(1.0, available / full)


def compute_utility(num_images: int, seconds: float) -> float:
    """Compute the images a second of a round; 1 if the round takes no time, as without device profiles."""
    return num_images / seconds if seconds > 0 else 1.0


def exploration_share(round_: int) -> float:
    """Fraction of the slots for clients never tried: 0.9 * 0.95 ** round_, at least 0.2, rounds from 1."""
    return max(EXPLORATION * EXPLORATION_DECAY**round_, EXPLORATION_FLOOR)


def normalised_rewards(rewards: np.ndarray) -> np.ndarray:
    """Compute rewards (N,), clipped at their ``CLIP_QUANTILE`` and scaled to [0, 1]; all 0 if they are equal."""
    clipped = np.minimum(rewards, np.quantile(rewards, CLIP_QUANTILE))
    width = clipped.max() - clipped.min()
    return (clipped - clipped.min()) / width if width > 0 else np.zeros_like(clipped)


def confidence_bonus(round_: int, last_rounds: np.ndarray) -> np.ndarray:
    """Compute the bonus (N,) for clients not seen for long: ``sqrt(BONUS * ln(round) / last_round)``, rounds from 1."""
    return np.sqrt(BONUS * math.log(round_) / last_rounds)


def best_pool(scores: np.ndarray, slots: int) -> np.ndarray:
    """Return positions whose score is at least ``CUTOFF`` times the ``slots``-th best score, the best first.

    Equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= CUTOFF * scores[order[slots - 1]]]


def draw_by_weight(weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``size`` positions without replacement, each in proportion to its weight among those left."""
    scaled = weights / max(weights.max(), np.finfo(np.float64).tiny) + EPSILON
    return rng.choice(len(weights), size, replace=False, p=scaled / scaled.sum())
