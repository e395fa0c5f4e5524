"""A run's name on the clients' disks: the same after a resume, another one for every other run."""

from __future__ import annotations

import uuid
from pathlib import Path

from fedssl.files import write_atomically

RUN_ID = "run_id"


def run_id(folder: Path) -> str:
    """The id in the run's folder, drawn when it is first asked for."""
    path = folder / RUN_ID
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex))
    return path.read_text().strip()
