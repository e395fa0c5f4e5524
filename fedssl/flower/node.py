"""Node configuration, set by the node's owner: ``flower-supernode --node-config 'client-id=3 memory="512MiB"'``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedssl.utils.units import parse_bytes

KEYS = ("client-id", "data-root", "images", "cache-dir", "memory", "device")


@dataclass(frozen=True)
class Node:
    """Settings of one node.

    Args:
        client_id: Number of the node's client, from 0. Node ids change with every connection, client ids do not.
        data_root: Folder of all data sets on this machine; ``None`` takes the run's.
        images: Folder of this node's own images; ``None`` if the run's data set is divided among the clients.
        cache: Folder for frozen layers between rounds.
        memory_bytes: Memory that training may use, in bytes; 0 for no limit.
        device: Device to train on.
    """

    client_id: int
    data_root: str | None
    images: str | None
    cache: Path
    memory_bytes: int
    device: torch.device


def read_node(config: Mapping[str, Any]) -> Node:
    """Read a node's configuration; in a simulation, Flower's ``partition-id`` is the client id.

    Raises:
        ValueError: A setting is missing, unknown or out of range.
    """
    unknown = set(config) - {*KEYS, "partition-id", "num-partitions"}
    if unknown:
        raise ValueError(f"unknown in --node-config: {', '.join(sorted(unknown))}; allowed: {', '.join(KEYS)}")
    client_id = config.get("client-id", config.get("partition-id"))
    if type(client_id) is not int or client_id < 0:
        raise ValueError(f"--node-config must set client-id to a whole number from 0, got {client_id!r}")
    return Node(
        client_id,
        config.get("data-root"),
        config.get("images"),
        Path(config.get("cache-dir", default_cache())).expanduser(),
        parse_bytes(config["memory"]) if "memory" in config else 0,
        torch.device(config.get("device", "cpu")),
    )


def default_cache() -> Path:
    """Default cache folder: ``fedssl`` below ``XDG_CACHE_HOME``, or ``~/.cache/fedssl``."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedssl"
