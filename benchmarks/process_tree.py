"""Memory of a command over time, its child processes included (Linux)."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 0.5


def run_measured(command: list[str], log: Path, environment: dict[str, str]) -> int:
    """Runs a command to its end.

    Args:
        command: What to run.
        log: File for what it prints.
        environment: Variables beside this process' own.

    Returns:
        Largest proportional set size (PSS) of the process tree: resident bytes, where a page that n processes share
        counts a n-th in each.

    Raises:
        RuntimeError: It failed.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
        peaks, over = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks, over))
        watcher.start()
        try:
            status = process.wait()
        finally:  # Ctrl-C takes along what it started
            over.set()
            watcher.join()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if status:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {status}; the end of {log}: {log.read_text()[-2000:]}"
        )
    return max(peaks)


def _watch(root: int, peaks: list[int], over: threading.Event) -> None:
    while not over.wait(POLL_SECONDS):
        peaks.append(sum(_pss(process) for process in _tree(root)))


def _tree(root: int) -> list[int]:
    """The process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            status = _read(entry / "stat").rpartition(")")[2].split()
            if status:
                parents[int(entry.name)] = int(status[1])
    tree = [root]
    for process in tree:
        tree += [child for child, parent in parents.items() if parent == process]
    return tree


def _pss(process: int) -> int:
    lines = _read(Path(f"/proc/{process}/smaps_rollup")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _read(path: Path) -> str:
    """Empty if the process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
