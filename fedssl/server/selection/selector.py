"""What every selector is: candidates in, participants out, and what they gave comes back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """A client that is reachable and whose memory holds the stage.

    Args:
        client_id: Its id.
        num_images: Its images.
        memory_bytes: What its device has for training; infinite when unknown.
        seconds: Predicted duration of this round on it; 0 when there are no device profiles.
    """

    client_id: int
    num_images: int
    memory_bytes: float = math.inf
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What the server learnt from a client that took part.

    Args:
        client_id: Its id.
        num_images: The images it trained on.
        mean_squared_loss: Mean over its steps of the squared batch loss; not finite if training diverged.
        seconds: Duration of the round on it.
        update: Sampled entries of its weights minus the global ones, of the trained layers, the same entries for all
            clients of a stage, of shape (D,); ``None`` unless the selector wants updates.
    """

    client_id: int
    num_images: int
    mean_squared_loss: float
    seconds: float = 0.0
    update: np.ndarray | None = None


class Selector(ABC):
    """Chooses the clients of each round.

    A run calls :meth:`begin` once, then :meth:`begin_stage` at every stage, and in every round :meth:`select` and
    :meth:`observe`. A resumed run calls :meth:`begin` and then :meth:`load_state_dict`.
    """

    wants_updates: ClassVar[bool] = False
    """Whether :attr:`Outcome.update` is to be filled."""

    def begin(self, num_clients: int, seed: int) -> None:
        """Forgets everything: a run of clients ``0`` to ``num_clients - 1`` starts."""

    def begin_stage(self, index: int) -> None:
        """Stage ``index``, counted from 0, starts."""

    @abstractmethod
    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """The participants of a round.

        Args:
            candidates: Clients that can take part, each once, in any order.
            size: How many are wanted.
            round_: The round, counted from 0.
            rng: The round's generator, the only source of chance.

        Returns:
            Ascending ids of ``min(size, len(candidates))`` candidates.
        """

    def observe(self, round_: int, outcomes: Sequence[Outcome]) -> None:
        """Takes what the participants of a round gave; those who failed are absent."""

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to continue, as tensors and plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of the same selector, run and seed."""


def by_id(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates in ascending order of id, so that a choice does not depend on the order they came in."""
    return sorted(candidates, key=lambda candidate: candidate.client_id)


class RandomSelector(Selector):
    """Every candidate is as likely; drawn without replacement (McMahan et al. 2017, arXiv 1602.05629)."""

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """A uniform draw; it depends on the candidates' number and order of ids alone."""
        ids = [candidate.client_id for candidate in by_id(candidates)]
        drawn = rng.choice(len(ids), min(size, len(ids)), replace=False)
        return [ids[position] for position in np.sort(drawn)]


class RoundRobinSelector(Selector):
    """Clients in turn by id, from where the round before stopped; those who are no candidates miss their turn."""

    def begin(self, num_clients: int, seed: int) -> None:
        """Client 0 is first."""
        self._num_clients = num_clients
        self._next = 0

    def select(self, candidates: Sequence[Candidate], size: int, round_: int, rng: np.random.Generator) -> list[int]:
        """The next candidates in turn; nothing is drawn."""
        turn = sorted((c.client_id for c in candidates), key=lambda i: (i - self._next) % self._num_clients)[:size]
        if turn:
            self._next = (turn[-1] + 1) % self._num_clients
        return sorted(turn)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn is next."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with that client."""
        self._next = int(state["next"])
