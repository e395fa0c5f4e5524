"""``python -m benchmarks.run NAME``: runs one benchmark and writes its result file."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import bank, memory, meter, neighbours, overhead, schemes, step_memory, steps

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parses the command line and runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for module in (schemes, neighbours, overhead, meter, memory, steps, step_memory, bank):
        module.add_commands(commands)
    arguments = parser.parse_args()
    arguments.run(arguments, RESULTS)


if __name__ == "__main__":
    main()
