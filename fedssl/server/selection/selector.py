"""Selector interface: candidates in, participants out, and their outcomes as feedback."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """Client that is reachable and whose memory holds the stage.

    Args:
        client_id: Id of the client.
        num_images: Number of its images.
        memory_bytes: Memory of its device for training; infinite when unknown.
        seconds: Predicted duration of this round on its device; 0 without device profiles.
    """

    client_id: int
    num_images: int
    memory_bytes: float = math.inf
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Outcome of a round for one participant, as the server knows it.

    Args:
        client_id: Id of the client.
        num_images: Number of images it trained on.
        mean_squared_loss: Mean over its steps of the squared batch loss; not finite if training diverged,
            NaN if the client keeps it to itself.
        seconds: Duration of the round on its device.
        update: Sampled entries (D,) of the trained layers' weights minus the global ones, the same entries for all
            clients of a stage; ``None`` unless the selector wants updates.
    """

    client_id: int
    num_images: int
    mean_squared_loss: float
    seconds: float = 0.0
    update: np.ndarray | None = None


class Selector(ABC):
    """Choice of the clients of each round.

    A run calls ``begin`` once, then ``begin_stage`` at every stage, and in every round ``select`` and ``observe``. A
    resumed run calls ``begin`` and then ``load_state_dict``.
    """

    wants_updates: ClassVar[bool] = False
    """Ask for ``Outcome.update``, which costs memory for every client."""

    reads_losses: ClassVar[bool] = False
    """Count on the losses of the clients, so that those that withhold them stay out."""

    def begin(self, num_clients: int, seed: int) -> None:
        """Forget everything: a run of clients ``0`` to ``num_clients - 1`` starts."""

    def begin_stage(self, index: int) -> None:
        """Take note that stage ``index``, counted from 0, starts."""

    @abstractmethod
    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Choose the participants of a round.

        Args:
            candidates: Clients that can take part, each once, in any order.
            size: Number of clients wanted.
            round_: Communication round, from 0.
            rng: Generator of the round, the only source of chance.

        Returns:
            Ascending ids of ``min(size, len(candidates))`` candidates.
        """

    def observe(self, round_: int, outcomes: Sequence[Outcome]) -> None:
        """Learn from the outcomes of a round; participants that failed are absent."""

    def state_dict(self) -> dict[str, Any]:
        """State for ``load_state_dict``, as tensors and plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same selector, run and seed."""


def by_id(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Sort candidates by id, so that a choice does not depend on the order in which they came."""
    return sorted(candidates, key=lambda candidate: candidate.client_id)


class LossSelector(Selector):
    """Base of selectors that prefer clients with a high loss: the loss of each client's last round."""

    reads_losses = True

    def begin(self, num_clients: int, seed: int) -> None:
        """Forget all losses."""
        self._squared_losses: dict[int, float] = {}

    def observe(self, round_: int, outcomes: Sequence[Outcome]) -> None:
        """Record each participant's loss; 0 if it is not finite."""
        for outcome in outcomes:
            loss = outcome.mean_squared_loss
            self._squared_losses[outcome.client_id] = float(loss) if math.isfinite(loss) else 0.0

    def squared_loss(self, client_id: int) -> float:
        """Return a client's mean squared loss; that of a client which never answered is the mean of the others."""
        known = self._squared_losses
        return known[client_id] if client_id in known else float(np.mean([*known.values()] or [0.0]))

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of the clients that answered."""
        return {"squared losses": dict(self._squared_losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the losses."""
        self._squared_losses = dict(state["squared losses"])


class RandomSelector(Selector):
    """Uniform draw of candidates without replacement (McMahan et al. 2017, arXiv 1602.05629)."""

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Draw uniformly; the draw depends on the candidates' ids alone."""
        ids = [candidate.client_id for candidate in by_id(candidates)]
        drawn = rng.choice(len(ids), min(size, len(ids)), replace=False)
        return [ids[position] for position in np.sort(drawn)]


class RoundRobinSelector(Selector):
    """Clients in turn by id, from where the previous round stopped. Unavailable clients are skipped."""

    def begin(self, num_clients: int, seed: int) -> None:
        """Start with client 0."""
        self._num_clients = num_clients
        self._next = 0

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """Choose the next candidates in turn; nothing is drawn."""
        turn = sorted((c.client_id for c in candidates), key=lambda i: (i - self._next) % self._num_clients)[:size]
        if turn:
            self._next = (turn[-1] + 1) % self._num_clients
        return sorted(turn)

    def state_dict(self) -> dict[str, Any]:
        """Id of the client whose turn is next."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the client whose turn was next."""
        self._next = int(state["next"])
