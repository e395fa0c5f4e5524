"""Nodes with images of their own."""

import csv
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import ROOT, TINY, TINY_FEDERATION

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


@pytest.mark.filterwarnings("ignore")
def test_hospitals_of_the_tutorial_are_simulated(grid: Any, flower: Callable[..., Path], tmp_path: Path) -> None:
    for split, number in (("train", 6), ("test", 2)):
        for hospital in ("north", "south", "west"):
            for digit in range(2):
                place = tmp_path / "hospitals" / split / hospital
                place.mkdir(parents=True, exist_ok=True)
                draw(place / str(digit), number)
    page = (ROOT / "docs" / "tutorial-hospitals.md").read_text().replace("DIR/", f"{tmp_path}/")
    given = tomllib.loads(re.findall(r"```toml[^\n]*\n(.*?)```", page, re.DOTALL)[0])["arguments"].split()
    tiny = [each for each in TINY_FEDERATION if "train_images" not in each]
    folder = flower(grid, tiny=[*given, *tiny, "--model.rounds=2"])
    found = json.loads((folder / "results.json").read_text())
    assert list(found["by_client"]["clients"]) == ["north", "south", "west"]
    assert found["failed_updates"] == 0
