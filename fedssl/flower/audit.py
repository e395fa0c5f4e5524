"""Audit of a node: what every run asked for, and what left this machine; written before it leaves."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fedssl.flower.cache import RUN
from fedssl.flower.consent import ConsentError, content_hash

RECIPES = "recipes"
MOST_RECIPES = 1000
LONGEST_RECIPE = 2**20


class Audit:
    """Folder with a file of JSON lines for every day (UTC), one line a message, and the recipe of every run.

    Several clients may share a folder.

    Args:
        folder: The folder; made if it is absent, readable by its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / RECIPES).mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep_recipe(self, run_id: str, recipe: str) -> Path:
        """Keep the recipe of a run, for people to read, and return its file.

        Raises:
            ConsentError: The run came with another recipe before, or there are too many or too long recipes.
            ValueError: The run id, which comes over the network, is none.
        """
        if not RUN.fullmatch(run_id):
            raise ValueError(f"a run id has 32 hexadecimal digits, got {run_id!r}")
        path = self.folder / RECIPES / f"{run_id}.yaml"
        # Whoever may send messages must not be able to fill the disk with them.
        if not path.exists() and (
            len(recipe) > LONGEST_RECIPE or sum(1 for _ in path.parent.iterdir()) >= MOST_RECIPES
        ):
            raise ConsentError(f"{path.parent} keeps {MOST_RECIPES} recipes of {LONGEST_RECIPE} characters: clear it")
        temporary = path.with_name(f".{run_id}.{os.getpid()}")
        temporary.write_bytes(recipe.encode())
        try:
            # Unlike a rename, a link fails where a file is: the first recipe of a run is the one that counts.
            os.link(temporary, path)
        except FileExistsError:
            if path.read_bytes() != recipe.encode():
                raise ConsentError(
                    f"run {run_id} comes with another recipe, {content_hash(recipe)}, than the one in {path}: a run "
                    "with other settings needs a run folder of its own"
                ) from None
        finally:
            temporary.unlink()
        return path

    def write(self, content: RecordDict, **facts: Any) -> None:
        """Append a line about a message that is about to be sent, in one piece.

        Args:
            content: The message's content; hashes and sizes of its arrays are noted, all else as it is.
            **facts: What else to note of it.

        Raises:
            OSError: The disk refused.
        """
        now = datetime.now(UTC)
        arrays = {
            f"{record}/{name}": f"{array.dtype} {list(array.shape)}, {len(array.data)} bytes, "
            f"sha256 {sha256(array.data).hexdigest()}"
            for record, found in content.array_records.items()
            for name, array in found.items()
        }
        note = json.loads(str(content.config_records["note"]["json"]))
        line = {"time": now.isoformat(timespec="seconds"), **facts, "sent": note, "arrays": arrays}
        with open(self._file(now), "ab+", opener=_private) as file:
            # Other clients of this machine may share the file.
            fcntl.flock(file, fcntl.LOCK_EX)
            # A line that a crash has cut off must not take this one with it.
            torn = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read() != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rounds_today(self, client_id: int) -> int:
        """Count the results that a client sent since midnight (UTC)."""
        path = self._file(datetime.now(UTC))
        if not path.exists():
            return 0
        lines = [_read(line) for line in path.read_bytes().splitlines()]
        return sum(line.get("client") == client_id and line["sent"].get("kind") == "Result" for line in lines if line)

    def _file(self, day: datetime) -> Path:
        return self.folder / f"{day:%Y-%m-%d}.jsonl"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:  # a line that a crash has cut off
        return {}
