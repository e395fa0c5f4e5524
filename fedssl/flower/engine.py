"""Engine over Flower: one message to each client of a round, and its answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedssl.federation.federation import Engine
from fedssl.flower.consent import content_hash
from fedssl.flower.records import (
    Hello,
    Lacking,
    Order,
    Question,
    decode_answer,
    encode_order,
    encode_question,
    malformed,
    wire_bytes,
)
from fedssl.flower.roster import Roster, pull
from fedssl.flower.settings import RoundSettings, run_id
from fedssl.protocol.messages import Failure, Result, num_bytes
from fedssl.server.participation import Cohort, Participation
from fedssl.server.rounds import RoundReport
from fedssl.server.server import Server
from fedssl.utils.files import write_text
from layerwise import Stage

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
ROOM_BYTES = 2**20
IMAGES_OF_MEDIAN = 4
"""Cap on a client's claimed number of images, as a multiple of the median claim, unless a setting overrides it."""
RECIPE = "recipe.yaml"
TOLD_SECONDS = 30.0
"""Time between two lines that say whom the server waits for."""
GRACE_SECONDS = 30.0
"""Extra time-to-live, so that a late reply is reported as late and not as an expired message."""


class FlowerEngine(Engine):
    """Engine whose clients run on Flower's nodes.

    Args:
        grid: Connection to the nodes.
        settings: Conditions under which a round begins and ends.
        recipe: Model and data of the run as text, for the clients.
        folder: Run folder.
        needed_bytes: Predicts a client's memory in bytes from a stage and a number of images.
    """

    def __init__(
        self, grid: Grid, settings: RoundSettings, recipe: str, folder: Path, needed_bytes: Callable[[Stage, int], int]
    ) -> None:
        self._grid, self._settings = grid, settings
        self._recipe, self._folder, self._needed_bytes = recipe, folder, needed_bytes
        self._roster: Roster | None = None
        self._wire = {"down": 0, "up": 0}
        self._again: set[int] = set()
        self._announced: dict[int, int] = {}
        self._most_bytes: dict[int, int] = {}

    def connect(self, server: Server) -> None:
        """Wait until enough clients are connected, and tell the server which ones are.

        Raises:
            TimeoutError: Too few clients connected in time.
        """
        everyone, first = server.participation.num_clients, self._roster is None
        self._check(server)
        roster = self._roster = self._roster or self._make_roster(server)
        # Not a setting of the run: on a resume its operator may ask for another number.
        server.quorum = self._settings.min_replies
        roster.refresh()
        # Nodes start one after another. The first round waits for all of them, so that a run does not begin with the
        # few that happened to be early; later rounds must not wait again for a client that has left.
        wanted = everyone if first else self._settings.min_clients
        self._wait(lambda: len(roster.connected()) >= wanted)
        present = roster.connected()
        if len(present) < self._settings.min_clients:
            raise TimeoutError(
                f"too few clients after {self._settings.join_timeout:g} s, min-clients is "
                f"{self._settings.min_clients}: {roster.describe()}"
            )
        if first and len(present) < everyone:
            logger.warning("the run starts with %d of %d clients: %s", len(present), everyone, list(present))
        server.participation.online = set(present)
        self._limit_images(server.participation)

    def train(self, server: Server, cohort: Cohort) -> Iterator[Result | Failure]:
        """Send one message to every participant; collect answers until all are in or the round's time is over."""
        self._wire, self._again = {"down": 0, "up": 0}, set()
        arrived: dict[int, Result | Failure] = {}
        waiting: dict[str, int] = {}
        for client in cohort.participants:
            self._send(server, client, waiting, arrived)
        # Once all tasks are out, so that sending to a large cohort shortens nobody's time.
        started = time.monotonic()
        told = Reminder()
        while waiting and not self._over(started, len(arrived)):
            if told.is_due():
                logger.warning(
                    "round %d: %d of %d clients have answered after %.0f s, waiting for %s",
                    *(server.round, len(arrived), len(cohort.participants), time.monotonic() - started),
                    ", ".join(map(str, sorted(waiting.values()))),
                )
            if not self._collect(server, waiting, arrived):
                time.sleep(POLL_SECONDS)
        for client in waiting.values():
            seconds = time.monotonic() - started
            arrived[client] = Failure(client, f"no answer after {seconds:.1f} s", late=True)
            logger.warning("round %d ends without client %d: no answer after %.1f s", server.round, client, seconds)
        # The order of arrival would change floating-point sums; ascending ids give the result of one process.
        for client in sorted(arrived):
            # Popped, so that a result is freed as soon as the server has added it.
            yield arrived.pop(client)

    def metrics(self, report: RoundReport) -> dict[str, float]:
        """Message bytes with framing, and counts of missing clients and of clients that had lost frozen layers."""
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
        # A reply holds the trained tensors in the framing in which they were sent. Twice their size plus room for
        # headers bounds what a client can make the server decode.
        self._most_bytes[client] = 2 * num_bytes(task.active) + ROOM_BYTES
        node = self._roster.connected()[client]
        # Flower answers an expired message with an error, which would count as a failure of the client. So a message
        # outlives its round. Without a limit, Flower's own time-to-live of twelve hours holds.
        ttl = self._settings.round_timeout + GRACE_SECONDS if self._settings.round_timeout else None
        message = Message(content, node, MessageType.TRAIN, ttl=ttl, group_id=str(server.round))
        # Flower returns no list entry, or ``None`` as the id, for a message that it could not send.
        message_ids = [each for each in self._grid.push_messages([message]) if each]
        waiting.update(dict.fromkeys(message_ids, client))
        if not message_ids:
            arrived[client] = Failure(client, "its task could not be sent")

    def _collect(self, server: Server, waiting: dict[str, int], arrived: dict[int, Result | Failure]) -> bool:
        """Take in the replies that have arrived; return ``True`` if there were any."""
        before = len(waiting)
        for message_id, client in list(waiting.items()):
            reply = pull(self._grid, message_id)
            if reply is None:
                continue
            del waiting[message_id]
            answer = self._read(reply, client, server.participation)
            if not isinstance(answer, Lacking):
                arrived[client] = answer
            # A client that lacks frozen layers, such as one with a cleared cache, is resent its task with them, once:
            # one whose disk keeps nothing would ask for ever.
            elif client not in self._again:
                self._again.add(client)
                server.holdings.replace(client, answer.held)
                self._send(server, client, waiting, arrived)
                return True  # the resent message takes the place of the old one, so the count below would miss it
            else:
                arrived[client] = Failure(client, "it cannot keep the frozen layers that it was sent")
        return len(waiting) < before

    def _read(
        self, reply: Message | Exception, client: int, participation: Participation
    ) -> Result | Failure | Lacking:
        assert self._roster is not None
        if isinstance(reply, Exception):
            return malformed(client, reply)
        if reply.has_error():
            return Failure(client, f"Flower's error {reply.error.code}: {reply.error.reason}")
        self._wire["up"] += wire_bytes(reply.content)
        return decode_answer(
            reply.content,
            client,
            self._most_bytes[client],
            withheld=self._roster.hello(client).withheld,
            assumed_images=participation.images[client],
        )

    def _over(self, started: float, answers: int) -> bool:
        limit, enough = self._settings.round_timeout, self._settings.enough_replies
        return bool(limit and time.monotonic() - started >= limit) or bool(enough and answers >= enough)

    def _wait(self, enough: Callable[[], bool]) -> None:
        assert self._roster is not None
        until, told = time.monotonic() + self._settings.join_timeout, Reminder()
        while not enough() and time.monotonic() < until:
            if told.is_due():
                logger.warning("waiting for clients: %s", self._roster.describe())
            time.sleep(POLL_SECONDS)
            self._roster.refresh()

    def _make_roster(self, server: Server) -> Roster:
        def welcome(hello: Hello) -> None:
            _check_withheld(server, hello)
            server.holdings.replace(hello.client_id, hello.held)
            if hello.num_images:  # only the first claim counts: a client must not raise its own weight during the run
                self._announced.setdefault(hello.client_id, hello.num_images)

        # For the operators of the nodes, who may want to read and approve it.
        write_text(self._folder / RECIPE, self._recipe)
        logger.warning("the run's recipe is %s, its SHA-256 %s", self._folder / RECIPE, content_hash(self._recipe))
        question = encode_question(Question(run_id(self._folder), self._recipe))
        return Roster(self._grid, server.participation.num_clients, question, welcome)

    def _limit_images(self, participation: Participation) -> None:
        """Set each client's number of images to its first claim, capped at the limit."""
        limit = self._settings.max_client_images or IMAGES_OF_MEDIAN * median(self._announced.values() or [0])
        for client, announced in self._announced.items():
            participation.set_images(client, max(1, min(announced, int(limit))))

    def _check(self, server: Server) -> None:
        clients = server.participation.num_clients
        if server.aggregation.always_steps and (self._settings.enough_replies or self._settings.min_replies > 1):
            raise ValueError(
                f"{type(server.aggregation).__name__} must not tell who answers: leave enough-replies at 0 and "
                f"min-replies at 1, got {self._settings.enough_replies} and {self._settings.min_replies}"
            )
        for name in ("min_clients", "min_replies", "enough_replies"):
            if (value := getattr(self._settings, name)) > clients:
                raise ValueError(f"{name.replace('_', '-')} {value}: the run has {clients} clients")


class Reminder:
    """Clock that is due every half minute."""

    def __init__(self) -> None:
        self._next = time.monotonic() + TOLD_SECONDS

    def is_due(self) -> bool:
        """Tell if half a minute has passed since the start, or since it was due last."""
        due = time.monotonic() >= self._next
        self._next += TOLD_SECONDS if due else 0
        return due


def _check_withheld(server: Server, hello: Hello) -> None:
    """Refuse a client that withholds what the run cannot do without.

    Raises:
        ValueError: It does.
    """
    for figure, reader, reads in (
        ("loss", server.participation.selector, server.participation.selector.reads_losses),
        ("counts", server.aggregation, server.aggregation.reads_steps),
    ):
        if reads and figure in hello.withheld:
            raise ValueError(f"client {hello.client_id} withholds its {figure}, which {type(reader).__name__} needs")
