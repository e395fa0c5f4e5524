"""FedHybrid's client selector (arXiv 2510.11400): memory, data and compute utility, explored as a bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from fedssl.server.selection.selector import Candidate, Outcome, Selector, by_id
from fedssl.utils.units import parse_bytes

MemoryForm = Literal["shortage", "literal-memory", "literal-overall"]


class FedHybridSelector(Selector):
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
        memory_form: Form of the memory term: ``shortage`` (our reading), or one of the printed forms, see
            ``memory_utility``.
        exploration: Fraction of the slots that explores, at the start.
        exploration_decay: Factor of this fraction from round to round.
        exploration_floor: Smallest value of this fraction.
        clip_quantile: Quantile at which utilities are clipped.
        cutoff: Known clients with at least this part of the score of the last slot may be drawn.
        bonus: Weight of the bonus for clients not seen for long.
        window: Size of the pool of new clients, in multiples of their slots; the pool has the best memory and compute.

    Raises:
        ValueError: A setting is out of its range.
    """

    def __init__(
        self,
        full_memory: str,
        memory_form: MemoryForm = "shortage",
        exploration: float = 0.9,
        exploration_decay: float = 0.95,
        exploration_floor: float = 0.2,
        clip_quantile: float = 0.98,
        cutoff: float = 0.7,
        bonus: float = 0.1,
        window: int = 5,
    ) -> None:
        _check_fractions(
            exploration=exploration,
            exploration_decay=exploration_decay,
            exploration_floor=exploration_floor,
            clip_quantile=clip_quantile,
            cutoff=cutoff,
        )
        if memory_form not in get_args(MemoryForm):
            raise ValueError(f"memory_form {memory_form!r} is unknown; allowed: {', '.join(get_args(MemoryForm))}")
        if not 0 <= bonus < math.inf:
            raise ValueError(f"bonus must be at least 0 and finite, got {bonus}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.full_memory = parse_bytes(full_memory)
        self.memory_form: MemoryForm = memory_form
        self.exploration = (exploration, exploration_decay, exploration_floor)
        self.clip_quantile = clip_quantile
        self.cutoff = cutoff
        self.bonus = bonus
        self.window = window

    def begin(self, num_clients: int, seed: int) -> None:
        """Forget all losses: no client has been tried."""
        self._squared_losses: dict[int, float] = {}
        self._last_rounds: dict[int, int] = {}

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Choose some of the best known candidates and some that were never tried."""
        known = [c for c in by_id(candidates) if c.client_id in self._last_rounds]
        new = [c for c in by_id(candidates) if c.client_id not in self._last_rounds]
        size = min(size, len(candidates))
        exploited = min(math.floor(size * (1 - exploration_share(*self.exploration, round_ + 1)) + EPSILON), len(known))
        explored = min(size - exploited, len(new))
        chosen = self._exploit(known, size - explored, round_ + 1, rng) + self._explore(new, explored, rng)
        # Noted now and not in ``observe``: a client that never answers would count as new for ever.
        self._last_rounds.update((candidate.client_id, round_ + 1) for candidate in chosen)
        return sorted(candidate.client_id for candidate in chosen)

    def observe(self, round_: int, outcomes: Sequence[Outcome]) -> None:
        """Record each participant's loss."""
        for outcome in outcomes:
            loss = outcome.mean_squared_loss
            self._squared_losses[outcome.client_id] = float(loss) if math.isfinite(loss) else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Losses of the clients that answered, and the round in which each client was last chosen."""
        return {"squared losses": dict(self._squared_losses), "last rounds": dict(self._last_rounds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore losses and rounds."""
        self._squared_losses = dict(state["squared losses"])
        self._last_rounds = dict(state["last rounds"])

    def _exploit(
        self, known: Sequence[Candidate], slots: int, round_: int, rng: np.random.Generator
    ) -> list[Candidate]:
        if not slots:
            return []
        typical = float(np.mean([*self._squared_losses.values()] or [0.0]))
        losses = np.array([max(self._squared_losses.get(c.client_id, typical), EPSILON) for c in known])
        last_rounds = np.array([self._last_rounds[c.client_id] for c in known])
        rewards = normalised_rewards(losses * self._device_utilities(known), self.clip_quantile)
        scores = rewards + confidence_bonus(self.bonus, round_, last_rounds)
        pool = best_pool(scores, slots, self.cutoff)
        return [known[pool[position]] for position in draw_by_weight(scores[pool], slots, rng)]

    def _explore(self, new: Sequence[Candidate], slots: int, rng: np.random.Generator) -> list[Candidate]:
        if not slots:
            return []
        utilities = self._device_utilities(new)
        pool = np.argsort(-utilities, kind="stable")[: self.window * slots]
        return [new[pool[position]] for position in draw_by_weight(utilities[pool], slots, rng)]

    def _device_utilities(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """Memory utility times compute utility of each candidate, (N,)."""
        return np.array(
            [
                memory_utility(c.memory_bytes, self.full_memory, self.memory_form)
                * compute_utility(c.num_images, c.seconds)
                for c in candidates
            ]
        )


def memory_utility(available: float, full: float, form: MemoryForm) -> float:
    """Memory term of a client's utility.

    The paper's reviews print an indicator as a factor, once each way: one form excludes every device with enough
    memory, the other every device with too little. Our reading takes it as the exponent, as in Oort.

    Args:
        available: Memory of the client in bytes; infinite means unknown, and counts as ``full`` and as enough.
        full: Bytes that training takes without saving memory.
        form: Form of the term. ``shortage``: ``min(1, available / full)``. ``literal-memory``: ``available / full``, or
            0 if that is 1 or more. ``literal-overall``: ``available / full``, or 0 if that is 1 or less.
    """
    if math.isinf(available):
        return 0.0 if form == "literal-memory" else 1.0
    ratio = available / full
    if form == "shortage":
        return min(1.0, ratio)
    counts = available < full if form == "literal-memory" else available > full
    return ratio if counts else 0.0


def compute_utility(num_images: int, seconds: float) -> float:
    """Images a second of a round; 1 if the round takes no time, as without device profiles."""
    return num_images / seconds if seconds > 0 else 1.0


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")


EPSILON = 1e-12
"""Lower bound of utilities and probabilities, and tolerance when a product is rounded down."""


def exploration_share(start: float, decay: float, floor: float, round_: int) -> float:
    """Fraction of the slots for clients never tried: ``max(start * decay ** round_, floor)``, rounds from 1."""
    return max(start * decay**round_, floor)


def normalised_rewards(rewards: np.ndarray, clip_quantile: float) -> np.ndarray:
    """Rewards (N,), clipped at one of their quantiles and scaled to [0, 1]; all 0 if they are equal."""
    clipped = np.minimum(rewards, np.quantile(rewards, clip_quantile))
    width = clipped.max() - clipped.min()
    return (clipped - clipped.min()) / width if width > 0 else np.zeros_like(clipped)


def confidence_bonus(weight: float, round_: int, last_rounds: np.ndarray) -> np.ndarray:
    """Bonus (N,) for clients not seen for long: ``sqrt(weight * ln(round) / last_round)``, rounds from 1."""
    return np.sqrt(weight * math.log(round_) / last_rounds)


def best_pool(scores: np.ndarray, slots: int, cutoff: float) -> np.ndarray:
    """Positions whose score is at least ``cutoff`` times the ``slots``-th best score, the best first.

    Equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= cutoff * scores[order[slots - 1]]]


def draw_by_weight(weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``size`` positions without replacement, each in proportion to its weight among those left."""
    scaled = weights / max(weights.max(), np.finfo(np.float64).tiny) + EPSILON
    return rng.choice(len(weights), size, replace=False, p=scaled / scaled.sum())
