"""Frozen parts that each client holds, by content, so that every content is sent to it once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedssl.protocol.parts import PartitionedModel


class Holdings:
    """Books on the frozen parts of the global model that clients hold.

    Args:
        model: Global model, whose parts have content ids.
    """

    def __init__(self, model: PartitionedModel) -> None:
        self._model = model
        self._held: dict[int, dict[str, str]] = {}
        self._ids: dict[str, str] = {}

    def send(self, client_id: int, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Note that a client gets what it lacks of these parts.

        It is noted before any answer: a client that lost something says so, see :meth:`replace`.

        Returns:
            Content ids of the parts, and the names of those that the client lacked.
        """
        needed, held = {name: self.content_id(name) for name in names}, self._held.setdefault(client_id, {})
        missing = [name for name, content in needed.items() if held.get(name) != content]
        held.update(needed)
        return needed, missing

    def replace(self, client_id: int, held: Mapping[str, str]) -> None:
        """Take a client's word for what it holds, content ids by name; names of other parts are left out."""
        self._held[client_id] = {name: held[name] for name in self._model.parts if name in held}

    def content_id(self, name: str) -> str:
        """Return the content id of a part, made once until :meth:`changed`."""
        if name not in self._ids:
            self._ids[name] = self._model.content_id(name)
        return self._ids[name]

    def changed(self, names: Iterable[str]) -> None:
        """Have the content ids of parts whose tensors changed made anew, once a client needs them."""
        for name in names:
            self._ids.pop(name, None)

    def state_dict(self) -> dict[int, dict[str, str]]:
        """Return what each client holds."""
        return {client: dict(held) for client, held in self._held.items()}

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Restore :meth:`state_dict`; the model's weights may be others now."""
        self._held = {client: dict(held) for client, held in state.items()}
        self._ids = {}
