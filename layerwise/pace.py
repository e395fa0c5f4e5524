"""Freezing rule of SmartFreeze (arXiv 2408.09101): a block is done when its weights no longer move in one direction.

SmartFreeze names the quantity (block perturbation, from effective parameter updates, without client data), but its
formulas could not be read. The perturbation and its constants are those of the same authors' code for ProFL (arXiv
2404.13349); smoothing, the normalised slope and the patience are our reading of the settings found there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST_LEVEL = 1e-8
"""Lower bound on the divisor of a slope."""

STATE = ("indices", "size", "vectors", "perturbations", "means", "converged")


@dataclass(frozen=True)
class PaceReading:
    """Observations of a block after a round; ``None`` where too few rounds are over.

    Args:
        perturbation: P, from 0 (updates cancel) to 1 (all point the same way).
        smoothed: M, the mean of the last P.
        slope: Change of M over as many rounds as are smoothed, relative to M.
        converged: Rounds in a row, up to this one, in which the slope was flat.
        freeze: True if these rounds are enough to freeze the block.
    """

    perturbation: float | None
    smoothed: float | None
    slope: float | None
    converged: int
    freeze: bool


class BlockPerturbation:
    """Freezing rule that follows the global weights of the trained block (SmartFreeze's block perturbation).

    After round r, with w the sampled weights: P is ``block_perturbation`` of the last ``window`` updates, M the mean of
    the last ``smoothing`` P, and the slope ``relative_slope`` of the last ``smoothing`` M. The block may be frozen once
    ``|slope| < slope_threshold`` in ``patience`` rounds in a row: with the defaults after 58 rounds at the earliest.
    ``begin`` takes the weights before the first round, so that P exists after ``window`` rounds. Only the slope counts,
    not the level: updates that keep agreeing are flat too.

    Args:
        window: H, the updates that a perturbation looks back on.
        smoothing: Q, the perturbations in a mean, and the means under a slope.
        slope_threshold: phi, below which a slope counts as flat.
        patience: W, the flat slopes in a row that freeze the block.
        sample_size: Number of weights that are followed; all of them in a smaller block.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        window: int = 6,
        smoothing: int = 20,
        slope_threshold: float = 0.2,
        patience: int = 15,
        sample_size: int = 10000,
    ) -> None:
        least = {"window": (window, 2), "smoothing": (smoothing, 2)}
        least |= {"patience": (patience, 1), "sample_size": (sample_size, 1)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")
        if not 0 < slope_threshold < math.inf:
            raise ValueError(f"slope_threshold must be positive and finite, got {slope_threshold}")
        self.window = window
        self.smoothing = smoothing
        self.slope_threshold = slope_threshold
        self.patience = patience
        self.sample_size = sample_size
        self._indices = torch.empty(0, dtype=torch.int64)
        self._size = 0
        self._restart([])

    def _restart(self, vectors: list[Tensor]) -> None:
        self._vectors = vectors
        self._perturbations: list[float] = []
        self._means: list[float] = []
        self._converged = 0

    def begin_stage(self, tensors: Iterable[Tensor], generator: torch.Generator) -> None:
        """Start a stage.

        Args:
            tensors: Weights of the block before its first round.
            generator: Generator that draws the sample.

        Raises:
            ValueError: The block has no weights, or one is not finite.
        """
        weights = _flatten(tensors)
        _check_finite(weights)
        self._size = len(weights)
        if self._size > self.sample_size:
            drawn = torch.randperm(self._size, generator=generator, device=generator.device)
            # The sample is drawn once a stage: perturbations compare the same weights over many rounds.
            self._indices = drawn[: self.sample_size].cpu().sort().values
        else:
            self._indices = torch.arange(self._size)
        self._restart([weights[self._indices]])

    def observe(self, tensors: Iterable[Tensor]) -> PaceReading:
        """Record the weights after a round, in the order of ``begin_stage``.

        Raises:
            ValueError: Their number differs from that at the beginning, or one is not finite; nothing is changed.
        """
        weights = _flatten(tensors)
        if len(weights) != self._size:
            raise ValueError(f"the block has {len(weights)} weights, the stage began with {self._size}")
        _check_finite(weights)
        # One vector more than updates: each update lies between two of them.
        self._vectors = [*self._vectors, weights[self._indices]][-self.window - 1 :]
        if len(self._vectors) <= self.window:
            return PaceReading(None, None, None, 0, False)
        self._perturbations = [*self._perturbations, block_perturbation(self._vectors)][-self.smoothing :]
        if len(self._perturbations) < self.smoothing:
            return PaceReading(self._perturbations[-1], None, None, 0, False)
        mean = math.fsum(self._perturbations) / self.smoothing
        self._means = [*self._means, mean][-self.smoothing :]
        return self._judge()

    def _judge(self) -> PaceReading:
        perturbation, mean = self._perturbations[-1], self._means[-1]
        if len(self._means) < self.smoothing:
            return PaceReading(perturbation, mean, None, 0, False)
        slope = relative_slope(self._means)
        self._converged = self._converged + 1 if abs(slope) < self.slope_threshold else 0
        return PaceReading(perturbation, mean, slope, self._converged, self._converged >= self.patience)

    def state_dict(self) -> dict[str, Any]:
        """Return everything observed in this stage, in tensors and plain types."""
        return {name: copy.deepcopy(getattr(self, f"_{name}")) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of ``state_dict``."""
        for name in STATE:
            setattr(self, f"_{name}", copy.deepcopy(state[name]))


def block_perturbation(vectors: list[Tensor]) -> float:
    """Return the distance from the first to the last vector over the length of the path taken (both in the 1-norm).

    Args:
        vectors: Weights (N,) after successive rounds, at least two.

    Returns:
        From 0 to 1. Weights that did not move at all give 0 (our reading): nothing is left to learn.
    """
    weights = torch.stack(vectors).double()
    taken = weights.diff(dim=0).abs().sum()
    return min(1.0, float((weights[-1] - weights[0]).abs().sum() / taken)) if taken else 0.0


def relative_slope(values: list[float]) -> float:
    """Return the slope of the least-squares line through equally spaced values, relative to the last value.

    The slope over the whole line counts: that of one step times the number of values. The normalisation is our reading:
    a slope per round of a quantity from 0 to 1 would always be far below the 0.2 that the authors' settings give as
    threshold.
    """
    middle, mean = (len(values) - 1) / 2, math.fsum(values) / len(values)
    above = math.fsum((place - middle) * (value - mean) for place, value in enumerate(values))
    slope = above / math.fsum((place - middle) ** 2 for place in range(len(values)))
    return slope * len(values) / max(values[-1], LEAST_LEVEL)


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    flat = [tensor.detach().reshape(-1).float().cpu() for tensor in tensors]
    if not sum(map(len, flat)):
        raise ValueError("the block has no weights")
    return torch.cat(flat)


def _check_finite(weights: Tensor) -> None:
    bad = int((~weights.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of the block's {len(weights)} weights are not finite: its perturbation is undefined")
