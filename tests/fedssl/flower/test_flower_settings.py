"""What users configure for Flower."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedssl.flower.settings import RoundSettings, command_line, in_run_config, read_node, round_settings

RUN = {
    "config": "lw_fedssl.yaml",
    "arguments": "--model.rounds=2 '--model.encoder.options={depth: 2}'",
    "run-dir": "/srv/run",
    "resume": "last",
    "min-clients": 2,
    "join-timeout": 5.0,
    "round-timeout": 60.0,
    "enough-replies": 3,
    "min-replies": 2,
    "max-client-images": 500,
}


def test_a_run_is_that_of_the_command_line() -> None:
    assert command_line(RUN) == [
        "fit",
        "-c",
        "lw_fedssl.yaml",
        "--model.rounds=2",
        "--model.encoder.options={depth: 2}",
        "--run_dir=/srv/run",
        "--ckpt_path=last",
    ]
    assert command_line(RUN | {"run-dir": "", "resume": "", "arguments": ""}) == ["fit", "-c", "lw_fedssl.yaml"]
    assert round_settings(RUN) == RoundSettings(2, 5.0, 60.0, 3, 2, 500)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_clients": 0}, "min-clients must be at least 1, got 0"),
        ({"round_timeout": -1.0}, "round-timeout must be at least 0"),
        ({"join_timeout": 0.0}, "join-timeout must be above 0"),
        ({"enough_replies": 1, "min_replies": 2}, "enough-replies 1 is below min-replies 2"),
    ],
)
def test_impossible_rounds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoundSettings(**settings)


def test_nodes() -> None:
    config = {"client-id": 3, "cache-dir": "/var/c", "memory": "2KiB", "data-root": "/data", "images": "/own"}
    node = read_node(config)
    assert (node.client_id, node.cache, node.memory_bytes) == (3, Path("/var/c"), 2048)
    assert (node.data_root, node.images, node.device) == ("/data", "/own", torch.device("cpu"))
    assert read_node({"partition-id": 4, "num-partitions": 9}).client_id == 4
    assert (node.consent, node.audit) == (None, Path("/var/c/audit"))
    with pytest.raises(ValueError, match="has consent, but neither images nor data-root"):
        read_node({"client-id": 1, "consent": "/etc/consent.yaml"})
    with pytest.raises(ValueError, match="must set client-id to a whole number from 0, got None"):
        read_node({})
    with pytest.raises(ValueError, match="unknown in --node-config: client_id; allowed: client-id"):
        read_node({"client_id": 1})
    with pytest.raises(ValueError, match="is not a size"):
        read_node({"client-id": 1, "memory": "lots"})


def test_errors_speak_of_the_keys_of_a_run() -> None:
    told = "error: /srv/run holds a run: go on with --ckpt_path last, or choose another --run_dir"
    assert in_run_config(f"{told}\n(FEDSSL_DEBUG=1 shows where)") == (
        'error: /srv/run holds a run: go on with resume="last", or choose another run-dir\n'
        "(a SuperLink started with FEDSSL_DEBUG=1 shows where)"
    )
    assert in_run_config("--run_dir /srv/run --ckpt_path auto") == 'run-dir="/srv/run" resume="auto"'
