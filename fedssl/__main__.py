"""``python -m fedssl`` is ``python train.py``."""

from __future__ import annotations

from collections.abc import Callable

from fedssl.cli.arguments import COMPARE
from fedssl.cli.command import main as run_command
from fedssl.cli.lightning import FedSSLCLI


def main(arguments: list[str] | None = None, cli: Callable[[list[str]], FedSSLCLI] = FedSSLCLI) -> None:
    """Run the whole command line, comparisons included.

    Args:
        arguments: Arguments without the program's name; ``None`` takes those of this process.
        cli: Builds and runs Lightning's sub-commands.
    """
    run_command(arguments, cli, {COMPARE: _compare})


def _compare(arguments: list[str]) -> int:
    """Import the comparison only when it is asked for: its drawing libraries take a while to load."""
    from fedssl.comparison.command import compare

    return compare(arguments)


if __name__ == "__main__":
    main()
