"""Results of each client: what they are tested on, and what is told of them."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.optim import SGD

from fedssl import FederatedData, FederatedSSL
from fedssl.data.natural import ByFolder
from fedssl.runs.client_results import client_results, client_table, describe, own_tests
from layerwise import EncoderSpec, LayerWise
from ssl_methods import DigitsViews

CPU = torch.device("cpu")


def write(root: Path, split: str, number: int, clients: tuple[str, ...] = ("north", "south")) -> None:
    """White and black images with noise, ``number`` of each for every client."""
    generator = np.random.default_rng(number)
    for client in clients:
        for name, level in (("black", 20), ("white", 220)):
            folder = root / split / client / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = level + generator.integers(-20, 21, (8, 8))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def prepared(root: Path, **settings: Any) -> FederatedData:
    data = FederatedData(
        dataset="folder",
        root=str(root),
        image_size=8,
        channels=1,
        partition=ByFolder(),
        seed=0,
        eval_clients=True,
        **settings,
    )
    data.setup("fit")
    return data


@pytest.fixture
def module(methods: dict[str, Any]) -> FederatedSSL:
    options = {"patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}
    spec = EncoderSpec("vit_tiny_patch16_224", 8, 1, options=options)
    return FederatedSSL(spec, methods["SimCLR"], DigitsViews(), partial(SGD, lr=0.1), LayerWise(), 1, seed=0)


def test_clients_are_tested_on_their_own_test_images(tmp_path: Path, module: FederatedSSL) -> None:
    write(tmp_path, "train", 6, ("east", "north", "south"))
    write(tmp_path, "test", 3)
    data = prepared(tmp_path)
    assert {name: len(images) for name, images in own_tests(data).items()} == {"north": 6, "south": 6}
    found = client_results(module, data, CPU)
    assert found["left_out"] == ["east"]
    assert found["tested_on"] == "the clients' own test images"
    assert found["clients"]["north"] == {
        "train_images": 12,
        "test_images": 6,
        "knn_top1": 100.0,
        "linear_top1": 100.0,
        "own_linear_top1": 100.0,
        "majority_top1": 50.0,
        "linear_per_class": [100.0, 100.0],
    }
    assert found["summary"]["knn_top1"] == {"mean": 100.0, "worst": 100.0, "worst_client": "north", "spread": 0.0}
    assert own_tests(prepared(tmp_path, eval_dataset="none")) == {}


def test_clients_without_test_images_keep_a_part_of_their_own(tmp_path: Path, module: FederatedSSL) -> None:
    write(tmp_path, "train", 10)
    found = client_results(module, prepared(tmp_path, eval_dataset="none"), CPU)
    assert [(each["train_images"], each["test_images"]) for each in found["clients"].values()] == [(16, 4)] * 2
    assert found["tested_on"].startswith("a random 20% of each client's labelled training images")
    assert found == client_results(module, prepared(tmp_path, eval_dataset="none"), CPU)


def test_images_without_labels_are_refused_before_training(tmp_path: Path) -> None:
    write(tmp_path, "train", 2)
    for image in list(tmp_path.glob("train/*/*/*.png")):
        image.rename(image.parent.parent / f"{image.parent.name} {image.name}")
    with pytest.raises(ValueError, match=r"data\.eval_clients needs labelled training images of two classes or more"):
        prepared(tmp_path, eval_dataset="none")


def scores(linear: float, own: float | None, right: list[float | None]) -> dict[str, Any]:
    images = {"train_images": 8, "test_images": 4, "majority_top1": 50.0}
    return images | {"knn_top1": 75.0, "linear_top1": linear, "own_linear_top1": own, "linear_per_class": right}


def test_line_and_table_show_the_worst_client() -> None:
    found = {
        "clients": {"b": scores(100.0, 50.0, [100.0, 100.0]), "a": scores(50.0, None, [None, 50.0])},
        "summary": {"linear_top1": {"mean": 75.0, "worst": 50.0, "worst_client": "a", "spread": 25.0}},
        "left_out": ["c"],
        "tested_on": "their own",
        "classes": ["healthy", "ill"],
    }
    assert describe(found) == "mean over 2 clients: linear 75.0 % (worst 50.0 % at a, spread 25.0)"
    table = client_table(found)
    assert [list(row) for row in table.rows] == [
        ["a", "8", "4", "75.0", "50.0", "", "50.0", "", "50.0"],
        ["b", "8", "4", "75.0", "100.0", "50.0", "50.0", "100.0", "100.0"],
    ]
    assert list(table.header)[-2:] == ["healthy right %", "ill right %"]
    assert "1 clients have no labelled images to test on" in table.caption
    Console(file=io.StringIO()).print(table.rich())
