"""The server's round as on a GPU: the tests of ``rounds_on_a_card.py``, in a process of their own.

What fake tensors of a card leave behind can crash a later garbage collection, and with it all tests that follow.
"""

import re
import subprocess
import sys
from pathlib import Path


def test_the_servers_rounds_run_on_a_card() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", str(Path(__file__).with_name("rounds_on_a_card.py"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    # Not the exit status: a crash at the very end is what this process is for.
    assert re.search(r"100%\]|\d+ passed", done.stdout), done.stdout + done.stderr
    assert "FAILED" not in done.stdout, done.stdout
