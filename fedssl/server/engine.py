"""What trains a round's clients: the run's own processes, or a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from fedssl.protocol.messages import Failure, Result
from fedssl.server.participation import Cohort
from fedssl.server.rounds import RoundReport
from fedssl.server.server import Server


class Engine(ABC):
    """Reaches clients wherever they are. A round is :meth:`gather`, :meth:`train`, :meth:`metrics`."""

    @abstractmethod
    def gather(self, server: Server) -> None:
        """Before a round's clients are drawn: tells the server who is there."""

    @abstractmethod
    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Gives one result for every participant, in ascending order of client id."""

    @abstractmethod
    def metrics(self, report: RoundReport) -> dict[str, float]:
        """What the engine has to say of a round, by the keys that loggers get."""
