"""Run the command line: one line for each user error, one exit status for each kind of end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from fedssl.cli.arguments import prepare_arguments
from fedssl.cli.class_paths import restrict_class_paths
from fedssl.cli.errors import BriefParser, one_line, root_cause
from fedssl.cli.lightning import TRAINER_DEFAULTS, FedSSLCLI
from fedssl.planning.trainer import PlanningTrainer
from fedssl.server.server import AllClientsFailedError
from fedssl.training.processes import process_rank
from fedssl.training.ranks import RankLostError
from fedssl.training.signals import ended_by_signals
from linear_eval import EvaluatedModule

USER_ERRORS = (ValueError, OSError, ArithmeticError, AllClientsFailedError, RankLostError, MisconfigurationException)


Command = Callable[[list[str]], int]


def main(
    arguments: list[str] | None = None,
    cli: Callable[..., FedSSLCLI] = FedSSLCLI,
    further: Mapping[str, Command] = MappingProxyType({}),
) -> None:
    """Run the command line.

    Args:
        arguments: Arguments without the program's name; ``None`` takes those of this process.
        cli: Builds and runs Lightning's sub-commands.
        further: Sub-commands that bypass Lightning, by name; each returns its exit status.
    """
    arguments = prepare_arguments(sys.argv[1:] if arguments is None else arguments)
    sys.argv[1:] = arguments
    # Clients' last batches differ in size. oneDNN compiles a convolution for each shape, and its default cache of 1024
    # entries would evict them before the next round needs them.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    _quieten()
    restrict_class_paths()
    with ended_by_signals():
        _run(arguments, cli, further)


def _run(arguments: list[str], cli: Callable[..., FedSSLCLI], further: Mapping[str, Command]) -> None:
    try:
        if arguments and arguments[0] in further:
            sys.exit(further[arguments[0]](arguments[1:]))
        cli(
            EvaluatedModule,
            LightningDataModule,
            parser_class=BriefParser,
            parser_kwargs={"description": "Federated self-supervised learning. See also: train.py compare --help"},
            trainer_class=PlanningTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=TRAINER_DEFAULTS,
        )
    except USER_ERRORS as error:
        if os.environ.get("FEDSSL_DEBUG"):
            raise
        process = f"process {process_rank()}: " if process_rank() else ""
        sys.exit(f"error: {process}{one_line(str(root_cause(error)))}\n(FEDSSL_DEBUG=1 shows where)")


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
