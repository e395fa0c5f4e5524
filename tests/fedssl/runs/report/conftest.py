"""One tiny run with everything that a report shows."""

from pathlib import Path

import pytest
import wandb
from tiny_runs import TINY_FEDERATION

from fedssl.__main__ import main


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages with Weights & Biases offline and clients that drop out."""
    wandb.finish()  # a run of another test would be taken for this one's
    folder = tmp_path_factory.mktemp("report") / "run"
    extra = ["--trainer.check_val_every_n_epoch=2", "--model.dropout=0.3"]
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, *extra, f"--run_dir={folder}"])
    wandb.finish()  # all that it sent is on the disk, whatever the process does next
    return folder
