"""Client cache on disk: frozen parts by content id, and the alignment's state after each of the latest rounds."""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fedssl.protocol.messages import Tensors, content_id
from fedssl.utils.files import UnusableStateError, read_state, write_atomically, write_state

logger = logging.getLogger(__name__)
RUNS_KEPT = 3
# Those of the round at work and of the server's two checkpoints, from either of which it may go on.
MEMORIES_KEPT = 3
NAME = re.compile(r"\w+(\.\w+)*")
CONTENT = re.compile(r"[0-9a-f]{32}")
RUN = re.compile(r"[0-9a-f]{32}")


class ClientCache:
    """Files of one client in one run.

    A frozen part is stored once, under its content id; newer content of the same part replaces it. States (memories) of
    several rounds are kept, because a server that was killed repeats the rounds after its last checkpoint.

    Args:
        folder: Cache folder of the client; all but the newest few runs in it are removed.
        run_id: Id of the run.
        client_id: Id of the client; several clients may share a folder.

    Raises:
        ValueError: The run id does not come from ``fedssl.flower.settings.run_id``.
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
        # By their names alone; ``get`` looks at the content of what is needed, and a damaged part is sent again.
        return {name: content for name, content in stems if NAME.fullmatch(name) and CONTENT.fullmatch(content)}

    def get(self, name: str, content: str) -> Tensors | None:
        """Read a part; ``None`` if it is absent or damaged."""
        path = self._path(name, content)
        if not path.exists():
            return None
        try:
            tensors = load_file(path)
        # Whatever damage makes of a file, it ends as one with other content, below.
        except Exception:
            tensors = {}
        if content_id(tensors) == content:
            return tensors
        path.unlink(missing_ok=True)
        return None

    def put(self, name: str, content: str, tensors: Tensors) -> None:
        """Store a part and remove its older contents.

        Raises:
            ValueError: The tensors do not match the content id, or a name is malformed.
        """
        path = self._path(name, content)
        if content_id(tensors) != content:
            raise ValueError(f"the tensors of {name} are not those that their content id promises")
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
        # After the write: a kill in between leaves two contents, and never none.
        for other in self.folder.glob(f"{name}@*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)

    def memory(self, round_: int) -> dict[str, Any] | None:
        """Latest state from before a round; a damaged file counts as never written."""
        for path in reversed(self._memories()):
            if _round_of(path) < round_:
                try:
                    return read_state(path)
                except (UnusableStateError, OSError) as error:
                    logger.warning("round %d: the memory %s is forgotten: it %s", round_, path, error)
                    path.unlink(missing_ok=True)
        return None

    def remember(self, round_: int, state: dict[str, Any]) -> None:
        """Store the client's state after a round."""
        write_state(state, self.folder / f"{round_:06d}.memory")
        for path in self._memories()[:-MEMORIES_KEPT]:
            path.unlink(missing_ok=True)

    def _memories(self) -> list[Path]:
        return sorted(self.folder.glob("*.memory"), key=_round_of)

    def _path(self, name: str, content: str) -> Path:
        # Both come over the network: a name with a slash would lead out of the cache folder.
        if not NAME.fullmatch(name) or not CONTENT.fullmatch(content):
            raise ValueError(f"{name!r} with content {content!r} is no part")
        return self.folder / f"{name}@{content}.safetensors"


def _round_of(path: Path) -> int:
    return int(path.stem)


def _forget_old_runs(folder: Path) -> None:
    changed: dict[Path, float] = {}
    for path in folder.iterdir():
        # Another client that shares the folder may be removing the same runs.
        with suppress(FileNotFoundError):
            changed |= {path: path.stat().st_mtime} if RUN.fullmatch(path.name) else {}
    for path in sorted(changed, key=changed.__getitem__)[:-RUNS_KEPT]:
        shutil.rmtree(path, ignore_errors=True)
