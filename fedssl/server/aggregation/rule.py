"""Interface of aggregation rules, which make one result of the clients'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fedssl.protocol.messages import STATE, Tensors
from fedssl.server.participation import Participation

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Update:
    """Client's result as rules see it.

    Args:
        client_id: Number of the client.
        tensors: Floating-point tensors of the layers that it gave. They must not be kept: the next client overwrites
            them.
        num_images: Images it trained on, no more than the division gave it.
        steps: Optimizer steps it took, by its own account.
        loss: Mean training loss over these steps, likewise; NaN if it keeps that to itself.
        lr_factor: Factor of its optimizer's learning rate in this round.
    """

    client_id: int
    tensors: Tensors
    num_images: int
    steps: int
    loss: float
    lr_factor: float = 1.0


class Aggregation(ABC):
    """Aggregation rule: combines the floating-point tensors of several clients, given one client at a time.

    A rule is used once a round: :meth:`begin_round`, :meth:`add` for each client in ascending order of client id,
    :meth:`finish`. Integer tensors never reach it. A client may give only some of the tensors: those of the layers it
    trained, or finished in time. :meth:`correction` is asked for each task, between ``begin_round`` and ``finish`` or
    before them, and maybe after the ``add`` of another client of the round.

    Attributes:
        takes_counters: Integer tensors take the largest of the clients' values; otherwise they stay.
        always_steps: Every round ends with a step of all trained tensors, also if some or all clients gave nothing,
            because the models must not tell who did.
        corrects: Every task has a correction of the gradients, so that its cost is known before the run.
        needs_proximal: mu of the proximal term that clients must train with; 0: any will do.
        reads_steps: It counts on the clients' true numbers of steps, so that clients that withhold them stay out.
        refused: Why parts (by name) keep their values in the round that was finished last, though clients gave them.
    """

    takes_counters = True
    always_steps = False
    corrects = False
    needs_proximal = 0.0
    reads_steps = False
    refused: dict[str, str] = {}  # noqa: RUF012 (replaced, never changed)

    def begin(self, participation: Participation, rounds: int) -> None:
        """Start a run, forgetting any run before it, and refuse settings that the rule does not fit.

        Args:
            participation: Number of clients, of all and in a round.
            rounds: Communication rounds of the run, at most.

        Raises:
            ValueError: They do not fit.
        """

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse, before the run, a clients' optimizer that the rule does not fit.

        Args:
            optimizer: Like those that clients make anew in every round, over a parameter that nobody needs.

        Raises:
            ValueError: It does not fit.
        """

    def correction(self, client_id: int, parameters: Mapping[str, Tensor]) -> Tensors:
        """Return what a client adds to its gradients before each optimizer step; by default nothing.

        Rules against client drift say in this way what the other clients' data would add. The tensors are part of the
        client's traffic, and its device holds them while it trains.

        Args:
            client_id: Client that a task is made for.
            parameters: Global parameters that it trains, by ``part/name``. They must not be kept.
        """
        return {}

    def metrics(self, rounds: int) -> dict[str, float]:
        """Return the rule's own figures after some rounds, by the keys that loggers get."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in plain types and tensors.

        It counts as a secret: only their owner may read checkpoints that have it.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""

    @abstractmethod
    def begin_round(self, reference: Tensors) -> None:
        """Start a round from the global tensors that were sent out."""

    @abstractmethod
    def add(self, update: Update) -> None:
        """Take what one client gave."""

    @abstractmethod
    def finish(self) -> Tensors:
        """Return the aggregated tensors, with the keys of the reference; those that no client gave are unchanged."""


def difference_to(reference: Tensor, tensor: Tensor) -> Tensor:
    """Return ``tensor - reference`` in float32, on the reference's device."""
    return tensor.to(reference.device).float() - reference.float()


def moved_by_gradients(key: str) -> bool:
    """Return False for batch norm's statistics and a method's state; a key is ``part/tensor name``."""
    return not key.startswith(STATE) and not key.endswith(STATISTICS)
