"""Command ``python -m benchmarks.run NAME``: runs one benchmark and writes its result file."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODULES = (
    "augmentation",
    "bank",
    "caff",
    "clients",
    "flower",
    "gpu",
    "memory",
    "memory_accuracy",
    "meter",
    "neighbours",
    "overhead",
    "paper",
    "peers",
    "reliability.attacks",
    "reliability.checkpoints",
    "reliability.disks",
    "reliability.faulty",
    "reliability.fuzz",
    "reliability.kills",
    "reliability.load",
    "reliability.privacy",
    "reliability.robust",
    "reliability.signals",
    "schemes",
    "startup",
    "step_memory",
    "steps",
)


def main() -> None:
    """Parses the command line and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for module in MODULES:
        import_module(f"benchmarks.{module}").add_commands(commands)
    arguments = parser.parse_args()
    arguments.run(arguments, RESULTS)


if __name__ == "__main__":
    main()
