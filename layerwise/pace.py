"""When a block has been trained enough: its weights no longer move in one direction (SmartFreeze, arXiv 2408.09101).

SmartFreeze names the quantity (block perturbation, from effective parameter updates, without client data), but its
formulas could not be read. The perturbation and its constants are those of the same authors' code for ProFL (arXiv
2404.13349); smoothing, the normalised slope and the patience are our reading of the settings found there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST_LEVEL = 1e-8
"""What a slope is divided by at least."""


@dataclass(frozen=True)
class PaceReading:
    """What is known of a block after a round; ``None`` where too few rounds are over.

    Args:
        perturbation: P, from 0 (updates cancel) to 1 (all point the same way).
        smoothed: M, the mean of the last P.
        slope: Change of M over as many rounds as are smoothed, relative to M.
        converged: Rounds in a row, up to this one, in which the slope was flat.
        freeze: Whether these are enough.
    """

    perturbation: float | None
    smoothed: float | None
    slope: float | None
    converged: int
    freeze: bool


class BlockPerturbation:
    """Follows the global weights of the block that is trained, and says when to freeze it.

    After round r, with w the sampled weights: P is :func:`block_perturbation` of the last ``window`` updates, M the
    mean of the last ``smoothing`` P, and the slope :func:`relative_slope` of the last ``smoothing`` M. The block may
    be frozen once ``|slope| < slope_threshold`` in ``patience`` rounds in a row: with the defaults after 58 rounds at
    the earliest. :meth:`begin` takes the weights before the first round, so that P exists after ``window`` rounds.
    Only the slope counts, not the level: updates that go on agreeing all the time are flat too.

    Args:
        window: Updates H that a perturbation looks back on.
        smoothing: Perturbations in a mean, and means under a slope (Q).
        slope_threshold: Slopes below are flat (phi).
        patience: Flat slopes in a row (W).
        sample_size: Weights that are followed; all of them in a smaller block.

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

    def begin(self, tensors: Iterable[Tensor], generator: torch.Generator) -> None:
        """Starts a stage.

        Args:
            tensors: The block's weights before its first round.
            generator: Draws the sample.

        Raises:
            ValueError: There is no weight, or one is not finite.
        """
        weights = _flatten(tensors)
        _check_finite(weights)
        self._size = len(weights)
        if self._size > self.sample_size:
            drawn = torch.randperm(self._size, generator=generator, device=generator.device)
            self._indices = drawn[: self.sample_size].cpu().sort().values
        else:
            self._indices = torch.arange(self._size)
        self._restart([weights[self._indices]])

    def observe(self, tensors: Iterable[Tensor]) -> PaceReading:
        """Takes the weights after a round, in the order of :meth:`begin`.

        Raises:
            ValueError: Their number is another one than at the beginning, or one is not finite; nothing is changed.
        """
        weights = _flatten(tensors)
        if len(weights) != self._size:
            raise ValueError(f"the block has {len(weights)} weights, the stage began with {self._size}")
        _check_finite(weights)
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
        """Everything observed in this stage, in tensors and plain types."""
        return {
            "indices": self._indices.clone(),
            "size": self._size,
            "vectors": [vector.clone() for vector in self._vectors],
            "perturbations": list(self._perturbations),
            "means": list(self._means),
            "converged": self._converged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self._indices, self._size = state["indices"].clone(), state["size"]
        self._vectors = [vector.clone() for vector in state["vectors"]]
        self._perturbations, self._means = list(state["perturbations"]), list(state["means"])
        self._converged = state["converged"]


def block_perturbation(vectors: list[Tensor]) -> float:
    """Length of the way from the first to the last vector, over the length of the way taken (both in the 1-norm).

    Args:
        vectors: Weights (N,) after successive rounds, at least two.

    Returns:
        From 0 to 1. Weights that did not move at all give 0 (our reading): nothing is left to learn.
    """
    weights = torch.stack(vectors).double()
    taken = weights.diff(dim=0).abs().sum()
    return min(1.0, float((weights[-1] - weights[0]).abs().sum() / taken)) if taken else 0.0


def relative_slope(values: list[float]) -> float:
    """Slope of the least-squares line through equally spaced values, times their number, over the last value.

    The normalisation is our reading: a slope per round of a quantity from 0 to 1 would always be far below the 0.2
    that the authors' settings give as threshold.
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
