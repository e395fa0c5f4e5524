"""ServerApp for Flower: the run of the command line, with Flower's nodes as clients."""

from __future__ import annotations

import logging
from functools import partial

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedssl.cli.command import main
from fedssl.cli.lightning import FedSSLCLI
from fedssl.flower.engine import FlowerEngine
from fedssl.flower.recipe import write_recipe
from fedssl.flower.settings import RoundSettings, command_line, in_run_config, round_settings
from fedssl.memory_budget.setting import MemoryBudget
from fedssl.training.federated import FederatedSSL
from layerwise import Stage

logger = logging.getLogger(__name__)
app = ServerApp()


class FlowerCLI(FedSSLCLI):
    """Command line with the same configuration, run folder, checkpoints and results, and clients on Flower's nodes.

    Args:
        arguments: Sub-command and settings.
        grid: Connection to the nodes.
        rounds: Conditions under which a round begins and ends.
    """

    def __init__(self, arguments: list[str], grid: Grid, rounds: RoundSettings) -> None:
        self._grid, self._rounds = grid, rounds
        super().__init__(arguments)

    def before_fit(self) -> None:
        """Give the module an engine over Flower.

        Raises:
            ValueError: The model is no federation, plans memory, or runs in several processes.
        """
        if not isinstance(self.model, FederatedSSL):
            raise ValueError(f"Flower runs federations: model must be FederatedSSL, got {type(self.model).__name__}")
        if self.model.settings.local.memory != MemoryBudget():
            raise ValueError("memory_budget plans the steps of clients in one process; on Flower set a node's memory")
        if self.trainer.world_size > 1:
            raise ValueError(f"Flower's server is one process, got {self.trainer.world_size}: set trainer.devices to 1")
        self._dump_config()
        self.model.engine = FlowerEngine(
            self._grid, self._rounds, write_recipe(self.config_dump), self.folder, self._needed_bytes
        )
        super().before_fit()

    def _needed_bytes(self, stage: Stage, images: int) -> int:
        """Predict the memory of a client's round; only nodes that state their memory are asked."""
        assert isinstance(self.model, FederatedSSL)
        assert self.model.federation is not None
        return self.model.federation.forecast(stage, images).peak_memory_bytes


@app.main()
def run(grid: Grid, context: Context) -> None:
    """Train, evaluate and export, as ``train.py fit`` does.

    Raises:
        RuntimeError: The run ended with an error, which the message names.
    """
    rounds = round_settings(context.run_config)
    try:
        main(command_line(context.run_config), partial(FlowerCLI, grid=grid, rounds=rounds))
    except SystemExit as stop:
        if stop.code:
            reason = in_run_config(str(stop))
            logger.error(reason)  # Flower prints a traceback, with the reason at its end
            raise RuntimeError(reason) from None
