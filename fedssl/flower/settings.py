"""Settings of ``flwr run --run-config``."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fedssl.utils.files import write_atomically


@dataclass(frozen=True)
class RoundSettings:
    """Conditions under which a round begins and ends.

    Args:
        min_clients: Connected clients that a round needs to begin. The first round waits for all clients of the
            configuration, as long as ``join_timeout`` allows.
        join_timeout: Seconds to wait for clients to connect.
        round_timeout: Seconds after which a round ends without the clients that have not answered. 0 sets no limit: one
            silent device can then hold the round for as long as Flower keeps a message, twelve hours.
        enough_replies: Answers after which a round ends at once; 0 waits for all.
        min_replies: Usable answers that a round needs. With fewer, the run ends; it can be resumed.
        max_client_images: Limit on the number of images that a client may claim, which is its weight in the mean. 0
            takes four times the median claim.

    Raises:
        ValueError: A number is out of its range.
    """

    min_clients: int = 1
    join_timeout: float = 300.0
    round_timeout: float = 3600.0
    enough_replies: int = 0
    min_replies: int = 1
    max_client_images: int = 0

    def __post_init__(self) -> None:
        at_least = {"min_clients": 1, "min_replies": 1, "enough_replies": 0, "round_timeout": 0, "max_client_images": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.join_timeout <= 0:
            raise ValueError(f"join-timeout must be above 0 seconds, got {self.join_timeout}")
        if self.enough_replies and self.enough_replies < self.min_replies:
            raise ValueError(f"enough-replies {self.enough_replies} is below min-replies {self.min_replies}")


def round_settings(config: Mapping[str, Any]) -> RoundSettings:
    """Read the round settings of a run configuration."""
    return RoundSettings(
        int(config["min-clients"]),
        float(config["join-timeout"]),
        float(config["round-timeout"]),
        int(config["enough-replies"]),
        int(config["min-replies"]),
        int(config["max-client-images"]),
    )


def command_line(config: Mapping[str, Any]) -> list[str]:
    """Arguments that ``train.py`` would get for the same run."""
    arguments = ["fit", "-c", str(config["config"]), *shlex.split(str(config["arguments"]))]
    arguments += [f"--run_dir={config['run-dir']}"] if config["run-dir"] else []
    return arguments + ([f"--ckpt_path={config['resume']}"] if config["resume"] else [])


RUN_ID = "run_id"


def run_id(folder: Path) -> str:
    """Id of the run, drawn once and kept in its folder, so that clients find their caches again after a resume."""
    path = folder / RUN_ID
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex))
    return path.read_text().strip()


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
