"""Roster: the node of each client, and the clients that are connected."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedssl.flower.records import Hello, RefusedError, decode_hello, malformed

logger = logging.getLogger(__name__)
FIRST_PAUSE = 30.0
LONGEST_PAUSE = 3600.0
"""Seconds until a node without a usable answer is asked again; every further one doubles them, up to the longest."""


@dataclass
class Stranger:
    """Node without a usable answer.

    Args:
        pause: Seconds between the last question and the next.
        until: Time of the next question, on the monotonic clock.
    """

    pause: float
    until: float


class Roster:
    """Map from clients to nodes, learnt by querying every node that appears.

    Flower gives a node a new id with every connection; client ids are configured and stay the same.

    Args:
        grid: Connection to the nodes.
        num_clients: Number of clients; valid client ids lie below it.
        question: Content of the query to each node.
        welcome: Called with the answer of every client; raises ``ValueError`` to send it away.
    """

    def __init__(self, grid: Grid, num_clients: int, question: RecordDict, welcome: Callable[[Hello], None]) -> None:
        self._grid, self._num_clients = grid, num_clients
        self._question, self._welcome = question, welcome
        self._nodes: dict[int, int] = {}
        self._hellos: dict[int, Hello] = {}
        self._asked: dict[str, int] = {}
        self._strangers: dict[int, Stranger] = {}
        self._online: set[int] = set()

    def refresh(self) -> None:
        """Poll connected nodes, query new ones and register their replies.

        Never waits: an unanswered query stays in ``_asked`` until a later call finds its reply.
        """
        self._online = set(self._grid.get_node_ids())
        # A node that was restarted may have been mended. Otherwise every question costs its device a process that
        # imports torch, so the pauses grow.
        self._strangers = {node: each for node, each in self._strangers.items() if node in self._online}
        paused = {node for node, each in self._strangers.items() if time.monotonic() < each.until}
        known = {*self._nodes.values(), *self._asked.values(), *paused}
        for node in sorted(self._online - known):
            message = Message(self._question, node, MessageType.QUERY)
            for message_id in self._grid.push_messages([message]):
                self._asked[message_id] = node
        for message_id, node in list(self._asked.items()):
            answer = pull(self._grid, message_id)
            if answer is not None:
                del self._asked[message_id]
                self._take(node, answer)

    def connected(self) -> dict[int, int]:
        """Node of every connected client, by client id."""
        return {client: node for client, node in sorted(self._nodes.items()) if node in self._online}

    def describe(self) -> str:
        """Say which clients are missing, and what is known of the nodes that might be theirs."""
        missing = [str(client) for client in range(self._num_clients) if client not in self.connected()]
        named = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        asked = len(self._online & {*self._asked.values()})
        refused = len(self._online & self._strangers.keys())
        nodes = f"{len(self._online)} nodes are online, {asked} have not answered yet, {refused} do not take part"
        connected = f"{self._num_clients - len(missing)} of {self._num_clients} clients are connected"
        return f"{connected}; {nodes}; missing: {named}"

    def hello(self, client_id: int) -> Hello:
        """Latest self-description of a client."""
        return self._hellos[client_id]

    def _take(self, node: int, answer: Message | Exception) -> None:
        try:
            hello = self._read(answer)
            self._welcome(hello)
        except ValueError as error:
            before = self._strangers.get(node)
            pause = min(2 * before.pause, LONGEST_PAUSE) if before else FIRST_PAUSE
            self._strangers[node] = Stranger(pause, time.monotonic() + pause)
            logger.warning("node %d does not take part: %s; it is asked again after %g s", node, error, pause)
            return
        self._strangers.pop(node, None)
        self._nodes[hello.client_id], self._hellos[hello.client_id] = node, hello
        logger.info("client %d is on node %d", hello.client_id, node)

    def _read(self, answer: Message | Exception) -> Hello:
        if isinstance(answer, Exception):
            raise ValueError(f"its answer cannot be read: {answer}")
        if answer.has_error():
            raise ValueError(answer.error.reason)
        try:
            hello = decode_hello(answer.content)
        except RefusedError:
            raise
        except Exception as error:
            raise ValueError(malformed(0, error).reason) from error
        if hello.client_id >= self._num_clients:
            raise ValueError(f"client-id {hello.client_id}: the run has clients 0 to {self._num_clients - 1}")
        # A client may return on a new node once its old one has gone, but two connected nodes cannot share an id.
        if self._nodes.get(hello.client_id) in self._online:
            raise ValueError(f"client-id {hello.client_id} is taken by node {self._nodes[hello.client_id]}")
        return hello


def pull(grid: Grid, message_id: str) -> Message | Exception | None:
    """Fetch the reply to a message: ``None`` before it arrives, an exception in its place if it cannot be read.

    Raises:
        httpx.HTTPError: The SuperLink cannot be reached.
    """
    try:
        replies = list(grid.pull_messages([message_id]))
    except httpx.HTTPError:
        raise
    except Exception as error:  # Flower decodes within pull_messages: one client's bytes must not end the run
        return error
    return replies[0] if replies else None
