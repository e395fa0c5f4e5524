"""What a client keeps on its disk between rounds: frozen parts by content, and what its alignment remembers."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fedssl.protocol.messages import Tensors, content_id
from fedssl.utils.files import write_atomically
from fedssl.utils.saved_state import UnusableStateError, read_state, write_state

logger = logging.getLogger(__name__)
RUNS_KEPT = 3
MEMORIES_KEPT = 3
NAME = re.compile(r"\w+(\.\w+)*")
CONTENT = re.compile(r"[0-9a-f]{32}")
RUN = re.compile(r"[0-9a-f]{32}")


class ClientCache:
    """One client's files of one run.

    A frozen part is stored once, under its content id; a newer content of the same part replaces it. Memories are kept
    for several rounds, because a server that was killed repeats the rounds after its last checkpoint.

    Args:
        folder: The client's cache folder; older runs in it than the newest few are removed.
        run_id: The run.
        client_id: The client; several of them may share a folder.

    Raises:
        ValueError: The run id is not one of :func:`fedssl.flower.settings.run_id`.
    """

    def __init__(self, folder: Path, run_id: str, client_id: int) -> None:
        if not RUN.fullmatch(run_id):
            raise ValueError(f"a run id has 32 hexadecimal digits, got {run_id!r}")
        self.folder = folder / run_id / str(client_id)
        fresh = not (folder / run_id).exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            _forget_old_runs(folder)

    def held(self) -> dict[str, str]:
        """Content id of every part in the cache."""
        stems = [path.stem.split("@") for path in sorted(self.folder.glob("*@*.safetensors"))]
        return {name: content for name, content in stems if NAME.fullmatch(name) and CONTENT.fullmatch(content)}

    def get(self, name: str, content: str) -> Tensors | None:
        """A part, or ``None`` if it is absent or damaged."""
        path = self._path(name, content)
        if not path.exists():
            return None
        try:
            tensors = load_file(path)
        except Exception:
            tensors = {}
        if content_id(tensors) == content:
            return tensors
        path.unlink(missing_ok=True)
        return None

    def put(self, name: str, content: str, tensors: Tensors) -> None:
        """Stores a part and removes its older contents.

        Raises:
            ValueError: The tensors are not those of the content id, or the names are no names.
        """
        path = self._path(name, content)
        if content_id(tensors) != content:
            raise ValueError(f"the tensors of {name} are not those that their content id promises")
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
        for other in self.folder.glob(f"{name}@*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)

    def memory(self, round_: int) -> dict[str, Any] | None:
        """What was last remembered before a round; a damaged memory counts as if it had never been written."""
        for path in reversed(self._memories()):
            if _round_of(path) < round_:
                try:
                    return read_state(path)
                except (UnusableStateError, OSError) as error:
                    logger.warning("round %d: the memory %s is forgotten: it %s", round_, path, error)
                    path.unlink(missing_ok=True)
        return None

    def remember(self, round_: int, state: dict[str, Any]) -> None:
        """Stores what is to be remembered after a round."""
        write_state(state, self.folder / f"{round_:06d}.memory")
        for path in self._memories()[:-MEMORIES_KEPT]:
            path.unlink(missing_ok=True)

    def _memories(self) -> list[Path]:
        return sorted(self.folder.glob("*.memory"), key=_round_of)

    def _path(self, name: str, content: str) -> Path:
        if not NAME.fullmatch(name) or not CONTENT.fullmatch(content):
            raise ValueError(f"{name!r} with content {content!r} is no part")
        return self.folder / f"{name}@{content}.safetensors"


def _round_of(path: Path) -> int:
    return int(path.stem)


def _forget_old_runs(folder: Path) -> None:
    runs = sorted(
        (path for path in folder.iterdir() if RUN.fullmatch(path.name)), key=lambda path: path.stat().st_mtime
    )
    for path in runs[:-RUNS_KEPT]:
        shutil.rmtree(path, ignore_errors=True)
