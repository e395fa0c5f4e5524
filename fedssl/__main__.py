"""The command line: ``fedssl``, ``python -m fedssl`` and, in a checkout, ``python train.py``."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedssl.cli.lightning import FedSSLCLI

USAGE = """\
Federated self-supervised representation learning for devices with little memory.

usage: {program} {{fit,validate,test,plan,compare,embed,node}} [-c FILE] [--any.setting VALUE]

sub-commands:
  fit         trains, then evaluates on the test split and exports the encoder
  validate    measures kNN with held-back training images as queries
  test        evaluates an encoder on the test split
  plan        predicts what each device will pay for a federated run
  compare     runs what is missing of a set of runs, and compares runs
  embed       writes the features of a folder of images, by the encoder of a run
  node        checks the configuration of a device of a Flower deployment

options:
  --version   shows the version
  -h, --help  of a sub-command, such as `{program} fit --help`, lists all its settings

FILE is a path, or a name in configs/ here or in the package. All further options follow the sub-command.
"""


def start() -> None:
    """Run the command line of this process, and answer at once what needs none of the imports that take seconds."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        program = "train.py" if Path(sys.argv[0]).name == "train.py" else "fedssl"
        print(USAGE.format(program=program), end="")
        sys.exit(0 if sys.argv[1:] else 2)
    if sys.argv[1:] == ["--version"]:
        from fedssl import __version__

        print(__version__)
        return
    # What torch and Lightning make on import stays: to look for garbage there takes a quarter of the time.
    gc.disable()
    import fedssl.cli.command  # noqa: F401

    gc.enable()
    gc.freeze()
    # Extension modules take what is frozen at the very end for leaked, and say so at length.
    atexit.register(gc.unfreeze)
    main()


def console() -> None:
    """Run the command ``fedssl``, which finds modules of the user in the working folder and not beside itself."""
    if sys.path and Path(sys.path[0]) == Path(sys.argv[0]).absolute().parent:
        sys.path[0] = os.getcwd()
    start()


def main(arguments: list[str] | None = None, cli: Callable[[list[str]], FedSSLCLI] | None = None) -> None:
    """Run the whole command line, with comparisons and ``embed``.

    Args:
        arguments: Arguments without the program's name; ``None`` takes those of this process.
        cli: Builds and runs Lightning's sub-commands; ``None`` takes ``FedSSLCLI``.
    """
    from fedssl.cli.arguments import COMPARE
    from fedssl.cli.command import main as run_command
    from fedssl.cli.lightning import FedSSLCLI

    run_command(arguments, cli or FedSSLCLI, {COMPARE: _compare, "embed": _embed, "node": _node})


def _compare(arguments: list[str]) -> int:
    """Import the comparison only when it is asked for: its drawing libraries take a while to load."""
    from fedssl.comparison.command import compare

    return compare(arguments)


def _embed(arguments: list[str]) -> int:
    from fedssl.cli.embed import embed

    return embed(arguments)


def _node(arguments: list[str]) -> int:
    """Import what needs Flower only when it is asked for.

    Raises:
        ValueError: Flower is not installed.
    """
    try:
        from fedssl.flower.check import check_node
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: node needs pip install 'fedssl[flower]'") from error
    return check_node(arguments)


if __name__ == "__main__":
    start()
