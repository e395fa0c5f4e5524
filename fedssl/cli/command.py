"""Run the command line: one line for each user error, one exit status for each kind of end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from fedssl.cli.arguments import UsageError, prepare_arguments
from fedssl.cli.errors import one_line, root_cause
from fedssl.cli.lightning import FedSSLCLI
from fedssl.cli.names import restrict_class_paths
from fedssl.server.server import AllClientsFailedError
from fedssl.training.endings import ended_by_signals
from fedssl.training.process_engine import RankLostError
from fedssl.training.processes import process_rank

USER_ERRORS = (ValueError, OSError, ArithmeticError, AllClientsFailedError, RankLostError, MisconfigurationException)
Command = Callable[[list[str]], int]


def main(
    arguments: list[str] | None = None,
    cli: Callable[[list[str]], FedSSLCLI] = FedSSLCLI,
    further: Mapping[str, Command] = MappingProxyType({}),
) -> None:
    """Run the command line.

    Args:
        arguments: Arguments without the program's name; ``None`` takes those of this process.
        cli: Builds and runs Lightning's sub-commands.
        further: Sub-commands that bypass Lightning, by name; each returns its exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # Clients' last batches differ in size. oneDNN compiles a convolution for each shape, and its default cache of 1024
    # entries would evict them before the next round needs them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    _quieten()
    restrict_class_paths()
    with ended_by_signals():
        try:
            arguments = sys.argv[1:] = prepare_arguments(arguments)  # processes of further ranks start with these
            if arguments and arguments[0] in further:
                sys.exit(further[arguments[0]](arguments[1:]))
            cli(arguments)
        except USER_ERRORS as error:
            if os.environ.get("FEDSSL_DEBUG"):
                raise
            process = f"process {process_rank()}: " if process_rank() else ""
            sys.exit(f"error: {process}{_told(error)}\n(FEDSSL_DEBUG=1 shows where)")


class SettingsOnly(FedSSLCLI):
    """Command line that stops where it knows the settings that ``fit`` would write to ``config.yaml``."""

    def before_instantiate_classes(self) -> None:
        """Keep the settings, and touch no folder."""
        self._set_rounds()
        self._dump_config()

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _set_seed(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse arguments into the configuration that ``train.py fit`` would save, all defaults included.

    Args:
        arguments: Arguments of ``fit``.

    Raises:
        ValueError: ``fit`` refuses the arguments.
    """
    restrict_class_paths()
    try:
        return SettingsOnly(prepare_arguments(["fit", *arguments])).config_dump
    except UsageError as error:
        raise ValueError(error.reason) from error
    except USER_ERRORS as error:
        raise ValueError(_told(error)) from error
    except SystemExit as error:  # --help and --print_config print and end the process, with a status of success
        raise ValueError(f"{' '.join(arguments)} trains nothing: it only prints") from error


def _told(error: BaseException) -> str:
    return one_line(str(root_cause(error)))


def _quieten() -> None:
    """Silence messages that do not concern a user of this command line."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if process_rank():
        logging.getLogger("fedssl").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*when logging on epoch level in distributed setting.*",
    ):
        warnings.filterwarnings("ignore", message)
