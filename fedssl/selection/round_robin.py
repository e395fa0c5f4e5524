"""Selection in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedssl.selection.selector import Candidate, Selector


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
