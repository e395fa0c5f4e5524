"""Drives the federation's server over Flower: one message to each client of a round, and its answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedssl.flower.records import (
    Hello,
    Lacking,
    Order,
    decode_answer,
    encode_order,
    encode_question,
    malformed,
    wire_bytes,
)
from fedssl.flower.roster import Roster
from fedssl.flower.settings import RoundSettings, pull, run_id
from fedssl.protocol.messages import Failure, Result, num_bytes
from fedssl.server.engine import Engine
from fedssl.server.participation import Cohort
from fedssl.server.rounds import RoundReport
from fedssl.server.server import Server
from layerwise import Stage

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
ROOM_BYTES = 2**20
IMAGES_OF_MEDIAN = 4
"""Times the clients' median number of images, above which no claim counts unless a setting says otherwise."""
GRACE_SECONDS = 30.0
"""A message outlives its round by this, so that who is late is late, and no error of Flower's."""


class FlowerEngine(Engine):
    """Clients of a round are on Flower's nodes.

    Args:
        grid: The nodes.
        settings: When a round begins and ends.
        recipe: Model and data of the run, for the clients.
        folder: The run's folder.
        needed_bytes: Predicted memory of a client with some images at a stage.
    """

    def __init__(
        self,
        grid: Grid,
        settings: RoundSettings,
        recipe: str,
        folder: Path,
        needed_bytes: Callable[[Stage, int], int],
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._recipe = recipe
        self._folder = folder
        self._needed_bytes = needed_bytes
        self._roster: Roster | None = None
        self._wire = {"down": 0, "up": 0}
        self._again: set[int] = set()
        self._announced: dict[int, int] = {}
        self._most_bytes: dict[int, int] = {}

    def gather(self, server: Server) -> None:
        """Waits until enough clients are connected, and tells the server which.

        Raises:
            TimeoutError: Too few came.
        """
        everyone, first = server.participation.num_clients, self._roster is None
        self._check(server)
        roster = self._roster = self._roster or self._make_roster(server)
        server.quorum = self._settings.min_replies
        roster.ask_again()
        roster.refresh()
        wanted = everyone if first else self._settings.min_clients
        self._wait(lambda: len(roster.connected()) >= wanted)
        present = roster.connected()
        if len(present) < self._settings.min_clients:
            raise TimeoutError(
                f"{len(present)} of {everyone} clients are connected after {self._settings.join_timeout:g} s, "
                f"min-clients is {self._settings.min_clients}"
            )
        if first and len(present) < everyone:
            logger.warning("the run starts with %d of %d clients: %s", len(present), everyone, list(present))
        server.participation.online = set(present)
        self._limit_images(server.participation.images)

    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """One message to every participant; the round ends with their answers, or when its time is over."""
        self._wire, self._again = {"down": 0, "up": 0}, set()
        arrived: dict[int, Result | Failure] = {}
        waiting: dict[str, int] = {}
        for client in cohort.participants:
            self._send(server, client, waiting, arrived)
        started = time.monotonic()
        while waiting and not self._over(started, len(arrived)):
            if not self._collect(server, waiting, arrived):
                time.sleep(POLL_SECONDS)
        for client in waiting.values():
            seconds = time.monotonic() - started
            arrived[client] = Failure(client, f"no answer after {seconds:.1f} s", late=True)
            logger.warning("round %d ends without client %d: no answer after %.1f s", server.round, client, seconds)
        for client in sorted(arrived):
            yield arrived.pop(client)

    def metrics(self, report: RoundReport) -> dict[str, float]:
        """Bytes of the messages with their framing, who was missing, and who had lost its frozen layers."""
        return {
            "cost/wire_down_bytes": self._wire["down"],
            "cost/wire_up_bytes": self._wire["up"],
            "client/unavailable": len(report.unavailable),
            "client/late": len(report.late),
            "client/declined": sum(failure.declined for failure in report.failures),
            "client/resent": len(self._again),
        }

    def _send(self, server: Server, client: int, waiting: dict[str, int], arrived: dict[int, Result | Failure]) -> None:
        assert self._roster is not None
        task = server.make_task(client)
        limited = self._roster.hello(client).memory_bytes > 0
        needed = self._needed_bytes(task.stage, server.participation.images[client]) if limited else 0
        content = encode_order(Order(task, run_id(self._folder), self._recipe, needed))
        self._wire["down"] += wire_bytes(content)
        # What is trained comes back as it went, in the same framing; the rest is room for headers.
        self._most_bytes[client] = 2 * num_bytes(task.active) + ROOM_BYTES
        node = self._roster.connected()[client]
        ttl = self._settings.round_timeout + GRACE_SECONDS if self._settings.round_timeout else None
        message = Message(content, node, MessageType.TRAIN, ttl=ttl, group_id=str(server.round))
        message_ids = [each for each in self._grid.push_messages([message]) if each]
        waiting.update(dict.fromkeys(message_ids, client))
        if not message_ids:
            arrived[client] = Failure(client, "its task could not be sent")

    def _collect(self, server: Server, waiting: dict[str, int], arrived: dict[int, Result | Failure]) -> bool:
        """Takes what has come in; whether there was anything."""
        before = len(waiting)
        for message_id, client in list(waiting.items()):
            reply = pull(self._grid, message_id)
            if reply is None:
                continue
            del waiting[message_id]
            answer = self._read(reply, client)
            if not isinstance(answer, Lacking):
                arrived[client] = answer
            elif client not in self._again:
                self._again.add(client)
                server.set_holdings(client, answer.held)
                self._send(server, client, waiting, arrived)
                return True
            else:
                arrived[client] = Failure(client, "it cannot keep the frozen layers that it was sent")
        return len(waiting) < before

    def _read(self, reply: Message | Exception, client: int) -> Result | Failure | Lacking:
        if isinstance(reply, Exception):
            return malformed(client, reply)
        if reply.has_error():
            return Failure(client, f"Flower's error {reply.error.code}: {reply.error.reason}")
        self._wire["up"] += wire_bytes(reply.content)
        return decode_answer(reply.content, client, self._most_bytes[client])

    def _over(self, started: float, answers: int) -> bool:
        limit, enough = self._settings.round_timeout, self._settings.enough_replies
        return bool(limit and time.monotonic() - started >= limit) or bool(enough and answers >= enough)

    def _wait(self, enough: Callable[[], bool]) -> None:
        assert self._roster is not None
        until = time.monotonic() + self._settings.join_timeout
        while not enough() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            self._roster.refresh()

    def _make_roster(self, server: Server) -> Roster:
        def welcome(hello: Hello) -> None:
            server.set_holdings(hello.client_id, hello.held)
            if hello.num_images:
                self._announced.setdefault(hello.client_id, hello.num_images)

        question = encode_question(run_id(self._folder), self._recipe)
        clients = server.participation.num_clients
        return Roster(self._grid, clients, question, welcome)

    def _limit_images(self, images: list[int]) -> None:
        """Client by client what it said first, which is its weight in the mean; none more than is allowed."""
        limit = self._settings.max_client_images or IMAGES_OF_MEDIAN * median(self._announced.values() or [0])
        for client, announced in self._announced.items():
            images[client] = max(1, min(announced, int(limit)))

    def _check(self, server: Server) -> None:
        clients = server.participation.num_clients
        if server.aggregation.always_steps and (self._settings.enough_replies or self._settings.min_replies > 1):
            raise ValueError(
                f"{type(server.aggregation).__name__} must not tell who answers: leave enough-replies at 0 and "
                f"min-replies at 1, got {self._settings.enough_replies} and {self._settings.min_replies}"
            )
        for name in ("min_clients", "min_replies", "enough_replies"):
            if getattr(self._settings, name) > clients:
                value = getattr(self._settings, name)
                raise ValueError(f"{name.replace('_', '-')} {value}: the run has {clients} clients")
