"""Fetches replies one at a time, so that one that cannot be read does not take others with it."""

from __future__ import annotations

import httpx
from flwr.app import Message
from flwr.serverapp import Grid


def pull(grid: Grid, message_id: str) -> Message | Exception | None:
    """The reply to a message; ``None`` if there is none yet, an exception if it is there and cannot be read.

    Raises:
        httpx.HTTPError: The SuperLink cannot be reached.
    """
    try:
        replies = list(grid.pull_messages([message_id]))
    except httpx.HTTPError:
        raise
    except Exception as error:
        return error
    return replies[0] if replies else None
