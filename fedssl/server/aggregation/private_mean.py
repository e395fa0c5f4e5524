"""Private mean: clipped updates and Gaussian noise, for differential privacy of whole clients."""

from __future__ import annotations

import hashlib
import math
import secrets
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedssl.protocol.messages import Tensors, content_id
from fedssl.server.aggregation.rule import Aggregation, Update, difference_to
from fedssl.server.participation import Participation
from fedssl.server.selection import RandomSelector, RoundRobinSelector


class PrivateMean(Aggregation):
    """DP-FedAvg without amplification by sampling (McMahan et al. 2018, arXiv 1710.06963, Gaussian mechanism).

    Every client's update, all layers as one vector, is scaled to a norm of at most ``clip``. The sum of the updates
    plus Gaussian noise with standard deviation ``noise_multiplier * clip`` is divided by the number of clients drawn a
    round.

    Two runs are neighbours if one client gives nothing in one of them, whatever the reason: it failed, was late, had
    too few images, or was refused. Epsilon bounds the evidence that the sequence of global models gives about which of
    two neighbours it came from. Every round therefore moves every trained tensor, even if one client or none answered,
    and no round fails for lack of answers. The guarantee does not cover the clients that are drawn or connected; the
    exact figures of a round, such as the mean loss and the number of answers, and all files with them; checkpoints; and
    leaks by floating-point rounding (Mironov 2012). Our deviations: no amplification, so epsilon is an upper bound for
    every participation; batch norm's counters do not move, and its variances do not fall below zero.

    The noise comes from a key that the operating system draws. Only checkpoints keep it, so that a resumed run
    continues exactly. The noise also depends on the clients' exact sum: two different sums never get the same noise, in
    any run.

    Args:
        clip: Largest norm of a client's update.
        noise_multiplier: Standard deviation of the noise in units of ``clip``.
        delta: Delta of the guarantee; below one over the number of clients.
        max_epsilon: Largest epsilon that a run may spend, else it is refused; ``.inf`` allows any.

    Raises:
        ValueError: A number is out of its range, or the extra ``fedssl[privacy]`` is not installed.
    """

    takes_counters = False
    always_steps = True

    def __init__(
        self,
        clip: float,
        noise_multiplier: float,
        delta: float = 1e-5,
        max_epsilon: float = 20.0,
    ) -> None:
        if not 0 < clip < math.inf or not 0 < noise_multiplier < math.inf:
            raise ValueError(f"clip and noise_multiplier must be above 0, got {clip} and {noise_multiplier}")
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, got {delta}")
        if not max_epsilon > 0:
            raise ValueError(f"max_epsilon must be above 0, got {max_epsilon}")
        if find_spec("dp_accounting") is None:
            raise ValueError("PrivateMean needs the accountant of the extra fedssl[privacy]: install it")
        self.clip, self.noise_multiplier, self.delta = clip, noise_multiplier, delta
        self.max_epsilon = max_epsilon
        self._key = secrets.token_bytes(32)
        self._clients = 1

    def begin(self, participation: Participation, rounds: int) -> None:
        """Start a run, and refuse one for which the guarantee does not hold.

        Raises:
            ValueError: The selection depends on the clients' data, or the guarantee is too weak to mean anything.
        """
        if not isinstance(participation.selector, RandomSelector | RoundRobinSelector):
            name = type(participation.selector).__name__
            raise ValueError(f"PrivateMean needs a selector that sees no client's data, not {name}")
        # The virtual clock advances to the slowest client that answered, so availability by time of day would leak
        # which clients did.
        profiles = participation.fleet.profiles if participation.fleet else []
        if any(isinstance(profile.availability, tuple) for profile in profiles):
            raise ValueError("PrivateMean needs devices whose availability does not depend on the time of day")
        if self.delta >= 1 / participation.num_clients:
            raise ValueError(f"delta {self.delta} must be below 1/{participation.num_clients}, one over the clients")
        epsilon = epsilon_of(self.noise_multiplier, rounds, self.delta)
        if epsilon > self.max_epsilon:
            raise ValueError(
                f"noise_multiplier {self.noise_multiplier} gives epsilon {epsilon:.3g} after {rounds} rounds, above "
                f"{self.max_epsilon:g}: raise it, or --model.aggregation.max_epsilon if so weak a promise is meant"
            )
        self._clients = participation.size

    def begin_round(self, reference: Tensors) -> None:
        self._reference = reference
        self._sums = {key: torch.zeros_like(tensor, dtype=torch.float32) for key, tensor in reference.items()}

    def add(self, update: Update) -> None:
        changes = {key: difference_to(self._reference[key], tensor) for key, tensor in update.tensors.items()}
        scale = min(1.0, self.clip / max(norm_of(changes), 1e-12))
        for key, change in changes.items():
            self._sums[key].add_(change, alpha=scale)

    def finish(self) -> Tensors:
        # A resumed run may repeat a round with other answers. Were the noise the same, the difference of the two models
        # would show the difference of the sums without any noise. Hence the sums are part of the key.
        inputs = content_id(self._reference) + content_id(self._sums)
        key = hashlib.blake2b(inputs.encode(), key=self._key).digest()
        return {name: self._step(name, reference, key) for name, reference in self._reference.items()}

    def metrics(self, rounds: int) -> dict[str, float]:
        """Return epsilon spent after a number of rounds."""
        return {"privacy/epsilon": epsilon_of(self.noise_multiplier, rounds, self.delta)}

    def state_dict(self) -> dict[str, Any]:
        """Return the key of the noise. It is a secret: whoever has it can subtract the noise."""
        return {"key": self._key.hex()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the key of the noise."""
        self._key = bytes.fromhex(state["key"])

    def _step(self, name: str, reference: Tensor, key: bytes) -> Tensor:
        noise = gaussian(key + name.encode(), reference.numel()).view(reference.shape).to(reference.device)
        deviation = self.noise_multiplier * self.clip
        stepped = (reference + (self._sums[name] + deviation * noise) / self._clients).to(reference.dtype)
        return stepped.clamp(min=0) if name.endswith("running_var") else stepped


def gaussian(key: bytes, size: int) -> Tensor:
    """Draw standard normal float32 numbers (size,) that nobody can tell from random ones without the key.

    torch's generators have short seeds and are invertible: an attacker could guess the seed, or continue the noise from
    the part that is visible. SHAKE-256 is made to prevent both.
    """
    # 53 bits fill the mantissa of a double. The added half keeps 0 and 1 out, where the quantile function is infinite.
    bits = np.frombuffer(hashlib.shake_256(key).digest(8 * size), dtype="<u8") >> np.uint64(11)
    uniform = torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-53)
    return torch.special.ndtri(uniform).float()


def norm_of(changes: Tensors) -> float:
    """Return the Euclidean norm of all tensors as one vector."""
    return math.sqrt(sum(change.double().square().sum().item() for change in changes.values()))


@lru_cache(maxsize=4096)
def epsilon_of(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Return epsilon of one Gaussian mechanism a round, by Google's accountant for Rényi differential privacy."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(noise_multiplier), rounds))
    return float(accountant.get_epsilon(delta))
