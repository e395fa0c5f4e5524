"""Engine interface: reaches a round's clients in the run's own processes, over a network, or dry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from fedssl.protocol.messages import Failure, Result
from fedssl.server.participation import Cohort
from fedssl.server.rounds import RoundReport
from fedssl.server.server import Server


class Engine(ABC):
    """Way to reach clients and train them. A round calls ``connect``, ``train`` and ``metrics`` in this order."""

    @abstractmethod
    def connect(self, server: Server) -> None:
        """Tell the server which clients are connected, before it draws those of a round."""

    @abstractmethod
    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Train the participants and yield one result for each, in ascending order of client id."""

    @abstractmethod
    def metrics(self, report: RoundReport) -> dict[str, float]:
        """Metrics of the engine's own for a round, by the key in the loggers."""
