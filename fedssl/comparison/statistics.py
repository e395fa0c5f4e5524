"""Statistics over seeds: t intervals of means and of paired differences, and Holm's correction for several of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

LEVEL = 0.05
"""Probability of error: intervals cover 95 %."""


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its uncertainty.

    Args:
        mean: Mean of the values.
        number: Number of values.
        error: Standard error of the mean, s / sqrt(n); ``None`` for a single value, and for values that are all equal:
            accuracies are multiples of 1/images, so a few equal ones do not show that the seed has no influence.
    """

    mean: float
    number: int
    error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, by Student's t with n - 1 degrees of freedom; ``None`` without an error."""
        if self.error is None:
            return None
        reach = float(stdtrit(self.number - 1, 1 - LEVEL / 2)) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a mean of zero; 1 without an error. Below 0.05 exactly if the interval excludes zero."""
        return 2 * float(stdtr(self.number - 1, -abs(self.mean / self.error))) if self.error else 1.0

    def text(self, digits: int = 2) -> str:
        """Format the mean with its sign, and the interval in square brackets if there is one."""
        limits = f" [{', '.join(f'{limit:+,.{digits}f}' for limit in self.interval)}]" if self.interval else ""
        return f"{self.mean:+,.{digits}f}{limits}"


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Estimate the mean of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    # Equal values can differ in their last bits after a subtraction.
    varies = deviation > 1e-9 * max(map(abs, values))
    return Estimate(statistics.fmean(values), len(values), deviation / math.sqrt(len(values)) if varies else None)


def paired_difference(own: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """Estimate the mean of own minus other value over the seeds that both have; ``None`` if they share no seed.

    Pairs take out what runs of one seed have in common (data split, initial weights), so the interval is narrower than
    that of the difference of two means.

    Args:
        own: Values by seed.
        other: Values to subtract, by seed.
    """
    shared = [seed for seed in own if seed in other]
    return estimate_mean([own[seed] - other[seed] for seed in shared]) if shared else None


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Tell which of several hypotheses can be rejected together with at most ``level`` probability of any error.

    Holm (1979): the smallest of m p-values is compared with level / m, the next with level / (m - 1), and so on until
    one is larger.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
