"""Effect of an activation bank on accuracy: whole runs of ``train.py`` on digits."""

from __future__ import annotations

from typing import Any

from benchmarks.neighbours import SHORT, Runs
from benchmarks.neighbours import run as run_whole

NOTES = """
`configs/lw_fedssl.yaml` (digits, a ViT of 6 blocks) with half of its rounds, 24 of 2 local epochs, which are 4 rounds a
stage, and activation banks of 1, 2, 4 and 8 pairs of views an image, filled once a stage or every 2 rounds, in 16 bits
unless another width is named. GMACs count the filling. Mean and standard deviation over seeds, last round's value.
"""
PAIRS = (1, 2, 4, 8)
REFRESH = {"once a stage": "null", "every 2 rounds": "2"}


def _bank(pairs: int, refresh: str, *others: str) -> tuple[str, list[str]]:
    bank = ["--model.bank=ActivationBank", f"--model.bank.pairs={pairs}", f"--model.bank.refresh={refresh}"]
    return "lw_fedssl", [*SHORT, *bank, *others]


RUNS: Runs = {
    "no bank": ("lw_fedssl", SHORT),
    **{
        f"{pairs} pair{'s' if pairs > 1 else ''}, {when}": _bank(pairs, rounds)
        for when, rounds in REFRESH.items()
        for pairs in PAIRS
    },
    "4 pairs, once a stage, 8 bits": _bank(4, "null", "--model.bank.bits=8"),
}


def add_commands(commands: Any) -> None:
    """Adds ``bank``."""
    parser = commands.add_parser("bank", help="accuracy on digits with activation banks")
    parser.add_argument("--work", default="runs/benchmark_bank", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="SYSTEM")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.set_defaults(run=run_whole, runs=RUNS, title="Activation banks on digits", notes=NOTES)
