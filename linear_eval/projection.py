"""Principal components of a representation, for a flat map."""

import torch
from torch import Tensor


def principal_components(x: Tensor, dimensions: int = 2) -> tuple[Tensor, Tensor]:
    """Project features on the directions in which they vary most.

    A direction is turned so that the coordinate furthest from 0 is positive: its sign would be arbitrary otherwise.

    Args:
        x: Features (N, D) with N of 1 or more and D of ``dimensions`` or more.
        dimensions: Number of directions.

    Returns:
        Coordinates, float32 (N, dimensions), and the share of the variance along each direction, (dimensions,), which
        is 0 without variance.

    Raises:
        ValueError: ``x`` is empty, no matrix, or narrower than ``dimensions``.
    """
    if x.ndim != 2 or len(x) == 0 or x.shape[1] < dimensions:
        raise ValueError(f"features must be (N, D) with D of {dimensions} or more, got shape {tuple(x.shape)}")
    centred = x.double() - x.double().mean(dim=0)
    variance, directions = torch.linalg.eigh(centred.T @ centred)
    order = torch.arange(len(variance) - 1, len(variance) - 1 - dimensions, -1, device=x.device)
    coordinates = centred @ directions[:, order]
    furthest = coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True))
    coordinates *= torch.where(furthest < 0, -1.0, 1.0)
    total = variance.clamp_min(0).sum()
    shares = variance[order].clamp_min(0) / total if total > 0 else torch.zeros_like(variance[order])
    return coordinates.float(), shares.float()
