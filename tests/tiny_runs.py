"""How the tests start whole runs: shrunk to seconds."""

import os
import signal
from pathlib import Path

from fedssl.cli.lightning import FedSSLCLI
from linear_eval import EvaluatedModule

ROOT = Path(__file__).parent.parent

# A run of seconds: two blocks, tiny widths, 60 images.
TINY = [
    "--model.encoder.options={patch_size: 4, depth: 2, embed_dim: 16, num_heads: 2, global_pool: avg}",
    "--model.method.hidden_dim=16",
    "--model.method.output_dim=8",
    "--data.train_images=60",
]
TINY_FEDERATION = [
    *TINY,
    "--model.rounds=4",
    "--model.local_epochs=1",
    "--model.batch_size=8",
    "--data.clients=3",
]

# A language model of seconds.
TINY_TEXT = [
    "--model.encoder.context=32",
    "--model.encoder.depth=2",
    "--model.encoder.width=16",
    "--model.encoder.heads=2",
    "--model.rounds=2",
    "--data.context=32",
    "--data.clients=3",
    "--trainer.check_val_every_n_epoch=1",
]


def environment() -> dict[str, str]:
    """One thread for each process, so that results do not depend on the machine's cores, and a W&B service of its own.

    A test that logs in this process leaves the address of its service behind. A run that finds it would share the
    service, which still holds the run's id for a process that was killed.
    """
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | {"OMP_NUM_THREADS": "1"}


def hear_interrupts() -> None:
    """Before a process starts: shells have their background jobs ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Unstarted(FedSSLCLI):
    """Builds trainer, model and data, and starts nothing.

    Args:
        arguments: Sub-command and settings.
        accepted: Gets the model.
    """

    def __init__(self, arguments: list[str], accepted: list[EvaluatedModule] | None = None) -> None:
        self._accepted = [] if accepted is None else accepted
        super().__init__(arguments)

    def _run_subcommand(self, subcommand: str) -> None:
        self._accepted.append(self.model)


class OnlyFitted(FedSSLCLI):
    """Trains, and leaves out the final evaluation and the report."""

    def after_fit(self) -> None:
        """Nothing."""
