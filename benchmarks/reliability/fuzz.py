"""Messages for configurations that make no sense: one line, and never a traceback."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.record import write_record
from benchmarks.reliability.cases import BASES, hostile, nonsense
from fedssl.__main__ import main
from fedssl.cli.command import parse
from fedssl.cli.lightning import FedSSLCLI

NOTES = """
Every case is a shipped configuration, shrunk to seconds, with one setting replaced, and is run in a process of its own
as `train.py fit` would, to the end of its training if it is accepted. *Hostile*: a random node becomes something of
another kind. *Nonsense*: numbers of the configurations become others of their type, out of range or close to it.
*Refused*: an error of one line before training. *Ended*: an error of one line while training. *Accepted*: it trained;
which these are is in the JSON file. Longest: characters of the longest message.
"""
OUTCOMES = ("refused", "ended", "accepted", "time limit", "traceback", "signal")
LINES = 2
"""Largest number of lines of an error: the error itself, and the hint where to read more."""


class Quick(FedSSLCLI):
    """A run to the end of its training, the online evaluations included."""

    def after_fit(self) -> None:
        """Evaluates and draws nothing: it takes longer than all the rest."""


def add_commands(commands: Any) -> None:
    """Adds ``reliability_fuzz``."""
    parser = commands.add_parser("reliability_fuzz", help="error messages of configurations that make no sense")
    parser.add_argument("--hostile", type=int, default=240)
    parser.add_argument("--every", type=int, default=2, help="take every so manieth number that makes no sense")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds a case")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, results: Path) -> None:
    """Runs all cases and writes the table."""
    whole = configurations()
    kinds = {
        "hostile": hostile(whole, arguments.hostile),
        "nonsense": islice(nonsense(whole), 0, None, arguments.every),
    }
    found = {kind: list(trials(cases, arguments.limit)) for kind, cases in kinds.items()}
    table = []
    for kind, outcomes in found.items():
        counts = Counter(each["outcome"] for each in outcomes)
        longest = max(len(each["said"]) for each in outcomes if each["outcome"] in OUTCOMES[:2])
        row = {"kind": kind, "cases": len(outcomes)} | {outcome: counts[outcome] for outcome in OUTCOMES}
        table.append(row | {"longest": longest})
    write_record(results, "reliability_fuzz", "Configurations that make no sense", table, found, NOTES)


def configurations() -> dict[str, Any]:
    """The shipped configurations, shrunk, with all their defaults."""
    found = {base: parse(["-c", f"{base}.yaml", *shrunk]) for base, shrunk in BASES.items()}
    for configuration in found.values():
        configuration["trainer"]["logger"] = False
    return found


def trials(cases: Iterator[tuple[str, dict[str, Any], str]], limit: float) -> Iterator[dict[str, Any]]:
    """Runs cases, one after the other."""
    for base, configuration, what in cases:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "case.yaml"
            file.write_text(yaml.safe_dump(configuration))
            began = time.perf_counter()
            outcome, said = trial(file, Path(folder), limit)
        seconds = round(time.perf_counter() - began, 1)
        print(f"{outcome:10} {base:12} {what:60} {said[:160]!r}", file=sys.stderr, flush=True)
        yield {"base": base, "what": what, "outcome": outcome, "said": said.replace(folder, ""), "seconds": seconds}


def trial(file: Path, folder: Path, limit: float) -> tuple[str, str]:
    """Runs one case in a child of this process, which has imported everything."""
    child = os.fork()
    if child == 0:
        answer = "traceback", ""
        try:
            answer = attempt(["fit", "-c", str(file), f"--run_dir={folder / 'run'}"], folder / "run")
        finally:
            (folder / "answer").write_text(json.dumps(answer))
            os._exit(0)
    status, end = None, time.perf_counter() + limit
    while status is None and time.perf_counter() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "time limit", ""
    answered = folder / "answer"
    return tuple(json.loads(answered.read_text())) if answered.is_file() else ("signal", str(status))


def attempt(arguments: list[str], run_folder: Path) -> tuple[str, str]:
    """Run a command and return its outcome and its messages."""
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            main(arguments, Quick)
    except SystemExit as stop:
        message = f"{said.getvalue() if isinstance(stop.code, int) else ''}{stop.code}".strip()
        if not message.startswith("error: ") or len(message.splitlines()) > LINES:
            return "traceback", message
        return "ended" if (run_folder / "config.yaml").exists() else "refused", message.splitlines()[0]
    except BaseException:
        return "traceback", traceback.format_exc()
    return "accepted", ""
