"""Aggregation rules: how the clients' results become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedssl.protocol.messages import Tensors
from fedssl.server.participation import Participation


@dataclass(frozen=True)
class Update:
    """A client's result as rules see it.

    Args:
        client_id: Who gave it.
        tensors: Floating-point tensors of the layers that it gave. They must not be kept: the next client overwrites
            them.
        num_images: Images it trained on, no more than the division gave it.
        steps: Optimizer steps it took, as it says itself.
        loss: Mean training loss over these steps, likewise.
    """

    client_id: int
    tensors: Tensors
    num_images: int
    steps: int
    loss: float


class Aggregation(ABC):
    """Combines floating-point tensors of several clients, given one client at a time.

    A rule is used once a round: :meth:`begin`, :meth:`add` for each client in ascending order of client id,
    :meth:`finish`. Integer tensors never reach it. A client may give only some of the tensors: those of the layers it
    trained, or finished in time.

    Attributes:
        takes_counters: Whether integer tensors take the largest of the clients' values; otherwise they stay.
        always_steps: Whether every round ends with a step of all trained tensors, also if some or all clients gave
            nothing, because the models must not tell who did.
        refused: Why parts (by name) keep their values in the round that was finished last, though clients gave them.
    """

    takes_counters = True
    always_steps = False
    refused: dict[str, str] = {}  # noqa: RUF012 (replaced, never changed)

    def check(self, participation: Participation, rounds: int) -> None:
        """Before the run: refuses settings that the rule does not fit.

        Args:
            participation: Says how many clients there are, and how many train in a round.
            rounds: Communication rounds of the run, at most.

        Raises:
            ValueError: They do not fit.
        """

    def metrics(self, rounds: int) -> dict[str, float]:
        """What the rule has to say after some rounds, by the keys that loggers get."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in plain types: a secret, so only their owner may read checkpoints that have it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""

    @abstractmethod
    def begin(self, reference: Tensors) -> None:
        """Starts a round from the global tensors that were sent out."""

    @abstractmethod
    def add(self, update: Update) -> None:
        """Takes what one client gave."""

    @abstractmethod
    def finish(self) -> Tensors:
        """The aggregated tensors, with the keys of the reference; those that no client gave are unchanged."""


def difference_to(reference: Tensor, tensor: Tensor) -> Tensor:
    """``tensor - reference`` in float32, on the reference's device."""
    return tensor.to(reference.device).float() - reference.float()
