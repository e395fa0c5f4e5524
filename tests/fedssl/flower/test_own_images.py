"""Nodes with images of their own."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY

from fedssl.__main__ import main

OWN = [
    "--data=fedssl.flower.own_images.OwnImages",
    "--data.clients=3",
    "--data.images_per_client=10",
    "--data.image_size=16",
    "--data.channels=1",
]


def draw(folder: Path, number: int) -> str:
    rng = np.random.default_rng(number)
    folder.mkdir()
    for i in range(number):
        Image.fromarray(rng.integers(0, 255, (20, 20), np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.filterwarnings("ignore")
def test_nodes_train_on_their_own_folders(
    grid: Any, flower: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedssl.flower.server_app.FlowerCLI.after_fit", lambda _: None)
    for client, number in ((0, 9), (1, 17)):
        grid.contexts[100 + client].node_config["images"] = draw(tmp_path / str(client), number)
    folder = flower(grid, *OWN, "--model.rounds=2")
    row = list(csv.DictReader((folder / "metrics.csv").open()))[-1]
    assert (float(row["client/participants"]), float(row["client/failed"])) == (2, 1)


def test_one_process_refuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [each for each in TINY if "train_images" not in each]
    with pytest.raises(SystemExit, match="OwnImages are on Flower's nodes"):
        main(["fit", "-c", "lw_fedssl.yaml", *settings, *OWN, "--trainer.logger=false", f"--run_dir={tmp_path}/run"])
