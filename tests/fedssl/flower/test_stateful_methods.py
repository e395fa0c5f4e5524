"""State of a method does not pass from client to client in a worker that they share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import ROOT, TINY_FEDERATION

from fedssl.__main__ import main


@pytest.fixture(autouse=True)
def _no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr", reason="the extra fedssl[flower] is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setattr("fedssl.flower.server_app.FlowerCLI.after_fit", lambda _: None)
    monkeypatch.setattr("fedssl.cli.lightning.FedSSLCLI.after_fit", lambda _: None)


def final_state(folder: Path) -> dict[str, Any]:
    return torch.load(max((folder / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", ["Travelling", pytest.param("Queued", marks=pytest.mark.slow)])
def test_a_shared_worker_gives_what_one_process_gives(
    name: str, grid: Any, flower: Callable[..., Path], tmp_path: Path
) -> None:
    """In one process the clients are trained in order; the worker gets them in the grid's."""
    settings = (f"--model.method=stateful_methods.{name}", "--model.rounds=2")
    grid.contexts = dict(reversed(grid.contexts.items()))
    there = final_state(flower(grid, *settings, config="lw_fedssl.yaml"))
    folder = f"--run_dir={tmp_path / 'here'}"
    main(["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--trainer.logger=false", *settings, folder])
    here = final_state(tmp_path / "here")
    assert here.keys() == there.keys()
    assert any(key.startswith("states.") for key in here) == (name == "Travelling")
    assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())
