"""What the rows of a comparison are drawn from: accuracy over the rounds, and similarity of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedssl.comparison.measures import mean_and_deviation
from fedssl.comparison.rows import Row
from fedssl.report.record import Curve, RunRecord
from linear_eval import EvaluationDetails
from linear_eval.cka import linear_cka

ACCURACY = "eval/knn_top1"


@dataclass(frozen=True)
class Band:
    """A metric over the rounds, over seeds.

    Args:
        rounds: At which every run measured it.
        mean: Over the runs.
        deviation: Standard deviation; 0 for a single run.
    """

    rounds: list[float]
    mean: list[float]
    deviation: list[float]


def records(row: Row) -> list[RunRecord]:
    """The finished runs of a row with their metrics and details."""
    return [RunRecord.read(run.folder) for run in row.runs if run.results]


def band(curves: Sequence[Curve]) -> Band:
    """Mean and standard deviation where all curves have a value.

    Args:
        curves: One a seed.
    """
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    rounds = sorted(set.intersection(*(set(each) for each in values))) if values else []
    spreads = [mean_and_deviation([each[at] for each in values]) for at in rounds]
    return Band(rounds, [mean for mean, _ in spreads], [deviation or 0.0 for _, deviation in spreads])


def layer_similarity(first: Row, second: Row) -> tuple[np.ndarray, list[str], list[str]] | None:
    """CKA of the layers of two rows' encoders on the same test images, mean over the seeds that both have.

    Returns:
        (L, M) and the names of both encoders' layers; ``None`` if runs did not keep what that takes.
    """
    pairs = [(a, b) for seed, a in _details(first).items() for other, b in _details(second).items() if seed == other]
    pairs = [(a, b) for a, b in pairs if _images(a) == _images(b) > 0]
    if not pairs:
        return None
    values = torch.stack([linear_cka(_outputs(a), _outputs(b)) for a, b in pairs]).mean(dim=0)
    return values.numpy(), *([name.removeprefix("block ") for name in each.layers.tolist()] for each in pairs[0])


def _details(row: Row) -> dict[int, EvaluationDetails]:
    found = {int(record.results["seed"]): record.evaluation for record in records(row)}
    return {seed: details for seed, details in found.items() if details is not None and len(details.layers)}


def _images(details: EvaluationDetails) -> int:
    return len(details.layer_outputs[0])


def _outputs(details: EvaluationDetails) -> list[torch.Tensor]:
    return [torch.from_numpy(output) for output in details.layer_outputs]
