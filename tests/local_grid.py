"""A Flower grid in one process: every message is taken apart and put together again as if it had travelled."""

from __future__ import annotations

import tomllib
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from tiny_runs import ROOT

from fedssl.flower import client_app

Answer = Callable[[Message, Context], Message]
RUN_CONFIG: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


class LocalGrid(Grid):
    """Nodes in this process.

    Args:
        configs: ``--node-config`` of each node.
    """

    def __init__(self, configs: Iterable[dict[str, Any]]) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.contexts: dict[int, Context] = {}
        self.answers: dict[int, Answer] = {}
        self.hidden: set[int] = set()
        self.silent: set[int] = set()
        self.sent: list[Message] = []
        self.left: list[tuple[int, Message]] = []
        self.left_bytes = b""
        self.wire_bytes = {"query": [0, 0], "train": [0, 0]}
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(1)
        for config in configs:
            self.add(config)

    def add(self, config: dict[str, Any]) -> int:
        """Starts a node and returns its id."""
        node = 100 + len(self.contexts)
        self.contexts[node] = Context(1, node, config, RecordDict(), RUN_CONFIG)
        return node

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return [node for node in self.contexts if node not in self.hidden]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = uuid.uuid4().hex
        message.metadata.__dict__["_message_id"] = message_id
        node = message.metadata.dst_node_id
        self.sent.append(message)
        if node in self.silent:
            return message_id
        arrived = self._travel(message, 0)
        arrived.metadata.__dict__["_message_id"] = message_id
        try:
            reply = self.answers.get(node, client_app.app)(arrived, self.contexts[node])
        except Exception as error:
            reply = Message(Error(2, repr(error)), reply_to=arrived)
        self.left.append((node, reply))
        self._replies[message_id] = reply if reply.has_error() else self._travel(reply, 1)
        return message_id

    def _travel(self, message: Message, direction: int) -> Message:
        contents = {key: each.deflate() for key, each in get_all_nested_objects(message).items()}
        self.wire_bytes[message.metadata.message_type][direction] += sum(map(len, contents.values()))
        self.left_bytes += b"".join(contents.values()) if direction else b""
        return inflate_object_from_contents(message.object_id, contents)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(each) for each in list(message_ids) if each in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))
