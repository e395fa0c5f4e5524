"""Runs in processes of their own, to be ended from outside."""

import subprocess
import sys
import time
from pathlib import Path

from tiny_runs import ROOT, environment, hear_interrupts


def train(*arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs ``train.py`` to its end and returns what it printed."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert not ok or done.returncode == 0, done.stderr[-3000:]
    return done


def start(folder: Path, config: str, settings: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "fit", "-c", config, *settings, f"--run_dir={folder}"]
    return subprocess.Popen(
        command,
        text=True,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=hear_interrupts,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(3600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear in three minutes")
