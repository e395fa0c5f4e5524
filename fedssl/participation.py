"""Who takes part in a round, and who drops out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9
"""What a product of a fraction and a number may be too large by."""


@dataclass(frozen=True)
class Cohort:
    """The clients of one round.

    Args:
        participants: Clients that train, in ascending order of id.
        dropped: Clients that were drawn but could not be reached.
    """

    participants: tuple[int, ...]
    dropped: tuple[int, ...]


def cohort_size(participation: float, num_clients: int) -> int:
    """Clients drawn each round.

    Args:
        participation: An ``int`` is a number of clients, a ``float`` in (0, 1] a fraction, rounded up.
        num_clients: Clients of the federation.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(participation, int):
        if not 1 <= participation <= num_clients:
            raise ValueError(f"participation {participation} clients a round: allowed are 1 to {num_clients}")
        return participation
    if not 0 < participation <= 1:
        raise ValueError(f"participation {participation} as a fraction must be above 0 and at most 1.0")
    return math.ceil(participation * num_clients - ROUNDING)


def draw_cohort(num_clients: int, size: int, dropout: float, rng: np.random.Generator) -> Cohort:
    """Draws ``size`` clients without replacement; each drops out with probability ``dropout``.

    A client that drops out is not reached at all: it costs no traffic and gives nothing.
    """
    drawn = np.sort(rng.choice(num_clients, size, replace=False))
    gone = rng.random(size) < dropout
    return Cohort(tuple(drawn[~gone].tolist()), tuple(drawn[gone].tolist()))


def check_dropout(dropout: float) -> float:
    """Returns the dropout probability if it lies in [0, 1).

    Raises:
        ValueError: It does not.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability of at least 0 and below 1, got {dropout}")
    return dropout
