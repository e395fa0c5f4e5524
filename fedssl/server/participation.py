"""Participation: the cohort of each round, and the clients that drop out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedssl.devices import Fleet
from fedssl.server.selection import Candidate, Outcome, RandomSelector, Selector
from fedssl.utils.seeding import numpy_generator
from layerwise import Stage

ROUNDING = 1e-9
"""Tolerance when a fraction of the clients is rounded up: in floating point, 0.07 * 100 is a little more than 7."""


@dataclass(frozen=True)
class Cohort:
    """The clients of one round.

    Args:
        participants: Clients that train, in ascending order of id.
        dropped: Clients that were selected but could not be reached.
        ineligible: Clients whose device cannot train any variant of the stage.
        unavailable: Clients whose device is switched off or out of reach at this time.
    """

    participants: tuple[int, ...]
    dropped: tuple[int, ...] = ()
    ineligible: tuple[int, ...] = ()
    unavailable: tuple[int, ...] = ()


class Participation:
    """Draw of the cohort of every round.

    Args:
        images: Number of images of every client.
        size: Clients a round, as for ``cohort_size``.
        dropout: Probability that a selected client cannot be reached after all. It costs no traffic and gives nothing.
        selector: Chooses among the clients that can take part; ``None`` draws at random.
        fleet: Devices of the clients; with ``None`` every client can always take part.
        seed: Seed of the run.

    Attributes:
        online: Clients that an engine found connected; ``None`` if all are in this process.
    """

    def __init__(
        self,
        images: Sequence[int],
        size: int | float = 1.0,
        dropout: float = 0.0,
        selector: Selector | None = None,
        fleet: Fleet | None = None,
        seed: int = 0,
    ) -> None:
        self.images = list(images)
        self.size = cohort_size(size, len(images))
        self.dropout = check_dropout(dropout)
        self.selector = selector or RandomSelector()
        self.fleet = fleet
        self.seed = seed
        self.online: set[int] | None = None
        self.selector.begin(len(images), seed)

    @property
    def num_clients(self) -> int:
        """Number of clients in the federation."""
        return len(self.images)

    def set_images(self, client: int, images: int) -> None:
        """Replace a client's assumed number of images, its weight and what its device has to hold, by the true one."""
        self.images[client] = images
        if self.fleet:
            self.fleet.images[client] = images

    def begin_stage(self, stage: Stage) -> None:
        """Tell the selector that a stage begins."""
        self.selector.begin_stage(stage.index)

    def draw(self, round_: int, variants: Sequence[Stage]) -> Cohort:
        """Draw the cohort of a round.

        Args:
            round_: Communication round, from 0.
            variants: Variants of the stage, largest first; each client holds the first one that its device can train.
        """
        # Of all clients, not of the reachable ones: a cohort also reports whom its devices exclude.
        chosen = {client: self.choose(client, variants) for client in range(self.num_clients)}
        holding = {client: variants[each] for client, each in chosen.items() if each is not None}
        reachable = self._reachable(round_)
        candidates = [self._candidate(client, stage) for client, stage in holding.items() if reachable[client]]
        rng = numpy_generator(self.seed, "cohort", round_)
        selected = self.selector.select(candidates, self.size, round_, rng)
        # Dropout strikes after the selection and is not made up for: the server learns of it too late.
        gone = rng.random(len(selected)) < self.dropout
        return Cohort(
            tuple(client for client, away in zip(selected, gone, strict=True) if not away),
            tuple(client for client, away in zip(selected, gone, strict=True) if away),
            tuple(sorted(set(range(self.num_clients)) - set(holding))),
            tuple(client for client in holding if not reachable[client]),
        )

    def choose(self, client: int, variants: Sequence[Stage]) -> int | None:
        """Return the position of the variant that a client trains; ``None`` if its device can train none."""
        return self.fleet.choose(client, variants) if self.fleet else 0

    def trained(self, variants: Sequence[Stage]) -> list[Stage]:
        """Return the variant of every client; the last, which is the smallest, where none fits."""
        chosen = [self.choose(client, variants) for client in range(self.num_clients)]
        return [variants[-1 if each is None else each] for each in chosen]

    def observe(self, round_: int, outcomes: Sequence[Outcome]) -> None:
        """Tell the selector how the round went."""
        self.selector.observe(round_, outcomes)

    def state_dict(self) -> dict[str, Any]:
        """State of the selector and of the fleet's clock."""
        fleet = self.fleet.state_dict() if self.fleet else {}
        return {"selector": self.selector.state_dict(), "fleet": fleet}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of ``state_dict``."""
        self.selector.load_state_dict(state["selector"])
        if self.fleet:
            self.fleet.load_state_dict(state["fleet"])

    def _reachable(self, round_: int) -> list[bool]:
        connected = [self.online is None or client in self.online for client in range(self.num_clients)]
        if not self.fleet:
            return connected
        switched_on = self.fleet.reachable(numpy_generator(self.seed, "reachable", round_))
        return [on and here for on, here in zip(switched_on, connected, strict=True)]

    def _candidate(self, client: int, stage: Stage) -> Candidate:
        if not self.fleet:
            return Candidate(client, self.images[client], math.inf, 0.0)
        memory = self.fleet.profiles[client].memory_bytes
        return Candidate(client, self.images[client], memory, self.fleet.expected_seconds(client, stage))


def cohort_size(participation: float, num_clients: int) -> int:
    """Number of clients drawn each round.

    Args:
        participation: An ``int`` is a number of clients, a ``float`` in (0, 1] a fraction, rounded up.
        num_clients: Clients of the federation.

    Raises:
        ValueError: ``participation`` is neither.
    """
    if isinstance(participation, int):
        if not 1 <= participation <= num_clients:
            raise ValueError(f"participation {participation} clients a round: allowed are 1 to {num_clients}")
        return participation
    if not 0 < participation <= 1:
        raise ValueError(f"participation {participation} as a fraction must be above 0 and at most 1.0")
    # Only a fraction of a client below the tolerance still gives 0.
    size = math.ceil(participation * num_clients - ROUNDING)
    if size < 1:
        one = f"{1 / num_clients:g} is one client"
        raise ValueError(f"participation {participation} of {num_clients} clients is nobody: {one}")
    return size


def check_dropout(dropout: float) -> float:
    """Return the dropout probability if it lies in [0, 1).

    Raises:
        ValueError: It does not.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability of at least 0 and below 1, got {dropout}")
    return dropout
