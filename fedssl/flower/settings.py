"""Settings of a deployment: those of ``flwr run --run-config``, and those by which a node's owner sets it up."""

from __future__ import annotations

import os
import re
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedssl.utils.files import write_text
from fedssl.utils.units import parse_bytes


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
    defaults = vars(RoundSettings())
    # Converted, because in ``--run-config`` 300 is a whole number where 300.0 seconds are meant.
    return RoundSettings(**{name: type(one)(config[name.replace("_", "-")]) for name, one in defaults.items()})


def command_line(config: Mapping[str, Any]) -> list[str]:
    """Return the arguments that ``train.py`` would get for the same run."""
    arguments = ["fit", "-c", str(config["config"]), *shlex.split(str(config["arguments"]))]
    arguments += [f"--run_dir={config['run-dir']}"] if config["run-dir"] else []
    return arguments + ([f"--ckpt_path={config['resume']}"] if config["resume"] else [])


def in_run_config(advice: str) -> str:
    """Replace the flags of ``train.py`` by the keys of ``--run-config``."""
    for flag, key in (("--ckpt_path", "resume"), ("--run_dir", "run-dir")):
        advice = re.sub(rf"{flag}[ =]([\w./-]*\w)", rf'{key}="\1"', advice).replace(flag, key)
    return advice.replace("(FEDSSL_DEBUG=1 shows where)", "(a SuperLink started with FEDSSL_DEBUG=1 shows where)")


RUN_ID = "run_id"


def run_id(folder: Path) -> str:
    """Id of the run, drawn once and kept in its folder, so that clients find their caches again after a resume."""
    path = folder / RUN_ID
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text().strip()


NODE_KEYS = ("client-id", "data-root", "images", "cache-dir", "memory", "device", "consent", "audit")


@dataclass(frozen=True)
class Node:
    """Settings of one node: ``flower-supernode --node-config 'client-id=3 memory="512MiB"'``.

    Args:
        client_id: Number of the node's client, from 0. Node ids change with every connection, client ids do not.
        data_root: Folder of all data sets on this machine; ``None`` takes the run's.
        images: Folder of this node's own images; ``None`` if the run's data set is divided among the clients.
        cache: Folder for frozen layers between rounds.
        memory_bytes: Memory that training may use, in bytes; 0 for no limit.
        device: Device to train on.
        consent: File with what the operator allows, see :mod:`fedssl.flower.consent`; ``None`` sets no limits.
        audit: Folder in which is written what leaves this node.
    """

    client_id: int
    data_root: str | None
    images: str | None
    cache: Path
    memory_bytes: int
    device: torch.device
    consent: str | None
    audit: Path


def read_node(config: Mapping[str, Any]) -> Node:
    """Read a node's configuration; in a simulation, Flower's ``partition-id`` is the client id.

    Raises:
        ValueError: A setting is missing, unknown or out of range.
    """
    unknown = set(config) - {*NODE_KEYS, "partition-id", "num-partitions"}
    if unknown:
        raise ValueError(f"unknown in --node-config: {', '.join(sorted(unknown))}; allowed: {', '.join(NODE_KEYS)}")
    client_id = config.get("client-id", config.get("partition-id"))
    if type(client_id) is not int or client_id < 0:
        raise ValueError(f"--node-config must set client-id to a whole number from 0, got {client_id!r}")
    if "consent" in config and not config.keys() & {"data-root", "images"}:
        raise ValueError("--node-config has consent, but neither images nor data-root: the run would choose the folder")
    cache = Path(config.get("cache-dir", default_cache())).expanduser()
    return Node(
        client_id,
        config.get("data-root"),
        config.get("images"),
        cache,
        parse_bytes(config["memory"]) if "memory" in config else 0,
        torch.device(config.get("device", "cpu")),
        config.get("consent"),
        Path(config.get("audit", cache / "audit")).expanduser(),
    )


def default_cache() -> Path:
    """Default cache folder: ``fedssl`` below ``XDG_CACHE_HOME``, or ``~/.cache/fedssl``."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedssl"
