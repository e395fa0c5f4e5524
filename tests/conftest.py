"""What every test needs: one thread, W&B offline, and no search for garbage in what the imports have made."""

import gc
import os

import pytest

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
gc.disable()  # until all tests are collected: the imports make millions of objects that stay


def pytest_collection_finish() -> None:
    """Has the garbage collector pass over what has been imported, which takes it half a second each time."""
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Extension modules take what is frozen at the very end for leaked."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run draws its report in tests marked ``report``, and in fixtures for several tests: that takes as long as a
    tiny run.
    """
    if not request.node.get_closest_marker("report"):
        monkeypatch.setattr("fedssl.runs.lifecycle._report", lambda *_: None)
