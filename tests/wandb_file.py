"""Reads back what Weights & Biases wrote offline."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, FRAME = 7, 32_768, 7
WHOLE, LAST = 1, 4


def records(folder: Path) -> Iterator[Any]:
    """Every record of the one offline run below a folder; the file is a LevelDB log behind a header of 7 bytes."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    at, record = HEADER, b""
    while at + FRAME <= len(data):
        if BLOCK - at % BLOCK < FRAME:  # the rest of a block that holds no frame is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + FRAME : at + FRAME + length]
        at += FRAME + length
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged values, one dictionary a call of ``log``; keys of media end in what is said of them."""
    logged = [record.history.item for record in records(folder) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in logged]


def axes(folder: Path) -> dict[str, str]:
    """What metrics are drawn over, by pattern."""
    metrics = [record.metric for record in records(folder) if record.HasField("metric")]
    return {metric.glob_name: metric.step_metric for metric in metrics if metric.glob_name}
