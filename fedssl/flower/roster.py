"""Which client sits on which node, and which of them are connected."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedssl.flower.records import Hello, decode_hello, malformed
from fedssl.flower.settings import pull

logger = logging.getLogger(__name__)


class Roster:
    """Asks every node that appears who it is; node ids change, client ids are configured.

    Args:
        grid: The nodes.
        num_clients: Clients of the run have the numbers below it.
        question: What nodes are asked.
        welcome: Is told of every client that answers.
    """

    def __init__(self, grid: Grid, num_clients: int, question: RecordDict, welcome: Callable[[Hello], None]) -> None:
        self._grid = grid
        self._num_clients = num_clients
        self._question = question
        self._welcome = welcome
        self._nodes: dict[int, int] = {}
        self._hellos: dict[int, Hello] = {}
        self._asked: dict[str, int] = {}
        self._strangers: set[int] = set()
        self._online: set[int] = set()

    def refresh(self) -> None:
        """Looks who is connected, asks newcomers and takes in what they answered."""
        self._online = set(self._grid.get_node_ids())
        known = {*self._nodes.values(), *self._asked.values(), *self._strangers}
        for node in sorted(self._online - known):
            message = Message(self._question, node, MessageType.QUERY)
            for message_id in self._grid.push_messages([message]):
                self._asked[message_id] = node
        for message_id, node in list(self._asked.items()):
            answer = pull(self._grid, message_id)
            if answer is not None:
                del self._asked[message_id]
                self._take(node, answer)

    def ask_again(self) -> None:
        """Nodes that gave no usable answer are asked once more at the next look."""
        self._strangers.clear()

    def connected(self) -> dict[int, int]:
        """Node of every connected client, by client id."""
        return {client: node for client, node in sorted(self._nodes.items()) if node in self._online}

    def hello(self, client_id: int) -> Hello:
        """What a client said of itself."""
        return self._hellos[client_id]

    def _take(self, node: int, answer: Message | Exception) -> None:
        try:
            hello = self._read(answer)
        except ValueError as error:
            logger.warning("node %d does not take part: %s", node, error)
            self._strangers.add(node)
            return
        self._nodes[hello.client_id], self._hellos[hello.client_id] = node, hello
        logger.info("client %d is on node %d", hello.client_id, node)
        self._welcome(hello)

    def _read(self, answer: Message | Exception) -> Hello:
        if isinstance(answer, Exception):
            raise ValueError(f"its answer cannot be read: {answer}")
        if answer.has_error():
            raise ValueError(answer.error.reason)
        try:
            hello = decode_hello(answer.content)
        except Exception as error:
            raise ValueError(malformed(0, error).reason) from error
        if hello.client_id >= self._num_clients:
            raise ValueError(f"client-id {hello.client_id}: the run has clients 0 to {self._num_clients - 1}")
        if self._nodes.get(hello.client_id) in self._online:
            raise ValueError(f"client-id {hello.client_id} is taken by node {self._nodes[hello.client_id]}")
        return hello
