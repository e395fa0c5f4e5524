"""The mean of clipped updates, with noise: differential privacy of whole clients."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from fedssl.aggregation.rule import Aggregation, difference_to
from fedssl.messages import Tensors, content_id
from fedssl.participation import Participation
from fedssl.seeding import torch_generator
from fedssl.selection import RandomSelector, RoundRobinSelector


class PrivateMean(Aggregation):
    """DP-FedAvg without amplification by sampling (McMahan et al. 2018, arXiv 1710.06963, Gaussian mechanism).

    Every client's update, all layers as one vector, is scaled to a norm of at most ``clip``. Their sum plus Gaussian
    noise with standard deviation ``noise_multiplier * clip`` is divided by the number of clients drawn a round.

    The guarantee is for whole clients (two runs are neighbours if one client gives nothing in one of them), for the
    sequence of global models, against who does not know ``noise_seed``: keep the run's configuration secret, Flower's
    clients never get this part of it. Metrics such as the mean loss are not covered and stay with the server. Our
    deviations: no amplification, so epsilon is an upper bound for every participation; batch norm's counters do not
    move, and its variances do not fall below zero.

    Args:
        clip: Largest norm of a client's update.
        noise_multiplier: Standard deviation of the noise in units of ``clip``.
        noise_seed: Of the noise; must not be the run's seed, which clients know.
        delta: Of the guarantee; below one over the number of clients.

    Raises:
        ValueError: A number is out of its range, or the extra ``fedssl[privacy]`` is not installed.
    """

    takes_counters = False

    def __init__(self, clip: float, noise_multiplier: float, noise_seed: int, delta: float = 1e-5) -> None:
        if not 0 < clip < math.inf or not 0 < noise_multiplier < math.inf:
            raise ValueError(f"clip and noise_multiplier must be above 0, got {clip} and {noise_multiplier}")
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, got {delta}")
        if find_spec("dp_accounting") is None:
            raise ValueError("PrivateMean needs the accountant of the extra fedssl[privacy]: install it")
        self.clip, self.noise_multiplier, self.noise_seed, self.delta = clip, noise_multiplier, noise_seed, delta
        self._clients = 1

    def check(self, participation: Participation, seed: int) -> None:
        """Refuses runs that the guarantee does not hold for.

        Raises:
            ValueError: Who takes part depends on the clients' data, ``delta`` is too large, or the noise is known.
        """
        if not isinstance(participation.selector, RandomSelector | RoundRobinSelector):
            name = type(participation.selector).__name__
            raise ValueError(f"PrivateMean needs a selector that sees no client's data, not {name}")
        if self.delta >= 1 / participation.num_clients:
            raise ValueError(f"delta {self.delta} must be below 1/{participation.num_clients}, one over the clients")
        if self.noise_seed == seed:
            raise ValueError(f"noise_seed {self.noise_seed} is the run's seed, which clients know: set another one")
        self._clients = participation.size

    def begin(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums = {key: torch.zeros_like(tensor, dtype=torch.float32) for key, tensor in reference.items()}

    def add(self, tensors: Tensors, num_images: int) -> None:
        changes = {key: difference_to(self._reference[key], tensor) for key, tensor in tensors.items()}
        scale = min(1.0, self.clip / max(norm_of(changes), 1e-12))
        for key, change in changes.items():
            self._sums[key].add_(change, alpha=scale)

    def finish(self) -> Tensors:
        generator = torch_generator(self.noise_seed, "privacy", int(content_id(self._reference), 16))
        deviation = self.noise_multiplier * self.clip
        return {key: self._step(key, reference, deviation, generator) for key, reference in self._reference.items()}

    def metrics(self, rounds: int) -> dict[str, float]:
        """Epsilon after some rounds."""
        return {"privacy/epsilon": epsilon_of(self.noise_multiplier, rounds, self.delta)}

    def _step(self, key: str, reference: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
        noise = torch.randn(reference.shape, generator=generator).to(reference.device)
        stepped = (reference + (self._sums[key] + deviation * noise) / self._clients).to(reference.dtype)
        return stepped.clamp(min=0) if key.endswith("running_var") else stepped


def norm_of(changes: Tensors) -> float:
    """Euclidean norm of all tensors as one vector."""
    return math.sqrt(sum(change.double().square().sum().item() for change in changes.values()))


@lru_cache(maxsize=4096)
def epsilon_of(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Epsilon of as many Gaussian mechanisms, by Google's accountant for Rényi differential privacy."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise_multiplier), rounds))
    return float(accountant.get_epsilon(delta))
