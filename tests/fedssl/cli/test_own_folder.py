"""What a folder of images proposes joins the user's arguments."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from photos import PROPOSED, save_photos
from PIL import Image

from fedssl.cli.arguments import find_config
from fedssl.cli.command import parse
from fedssl.cli.own_folder import with_proposal
from fedssl.runs.changed_settings import flatten


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of 80 x 100 pixels in colour."""
    root = tmp_path / "my photos ü"
    save_photos(root, ["red", "red"])
    return root


def flags(root: Path, *more: str) -> list[str]:
    return ["-c", str(find_config("lw_fedssl.yaml")), "--data.dataset", "folder", f"--data.root={root}", *more]


def added(root: Path, *more: str) -> list[str]:
    arguments = ["fit", *flags(root, *more)]
    completed = with_proposal(arguments)
    assert completed[:3] + completed[len(completed) - len(arguments) + 3 :] == arguments
    return completed[3 : len(completed) - len(arguments) + 3]


def test_the_users_settings_win(photos: Path, tmp_path: Path) -> None:
    assert added(photos) == [f"--{name}={value}" for name, value in PROPOSED.items()]
    own = tmp_path / "own.yaml"
    own.write_text("data: {init_args: {dataset: folder, image_size: 32}}")
    assert with_proposal(["fit", "--config=lw.yaml", f"--data.root={photos}"]) == [
        "fit", "--config=lw.yaml", f"--data.root={photos}"
    ]  # fmt: skip
    lw = flags(photos)[1]
    assert "--model.encoder.image_size=32" in with_proposal(
        ["plan", "-c", lw, "-c", str(own), "--data.root", str(photos)]
    )
    assert not [flag for flag in added(photos, "--model.encoder.name=resnet18") if "patch" in flag]
    assert not [flag for flag in added(photos, "--model.encoder.options={patch_size: 16}") if "patch" in flag]
    own.write_text(
        "{data: {init_args: {dataset: folder}}, model: {init_args: {encoder: {name: vit_small_patch16_224}}}}"
    )
    completed = with_proposal(["fit", "-c", lw, "-c", str(own), f"--data.root={photos}"])
    assert "--data.image_size=64" in completed
    assert not [flag for flag in completed if "patch_size" in flag]
    assert added(photos, "--data=fedssl.FederatedText") == []
    assert added(tmp_path / "nowhere") == []


def test_the_configuration_of_the_run_has_values(photos: Path, tmp_path: Path) -> None:
    resolved = parse(flags(photos, "--model.augment.grayscale=0.5", "--data.channels=1"))
    flat: dict[str, Any] = flatten(resolved)
    grey = {"data.channels": 1, "model.encoder.in_channels": 1, "model.augment": "MedicalViews"}
    assert {name: flat[name] for name in PROPOSED} == PROPOSED | grey
    assert flat["model.augment.grayscale"] == 0.5
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(resolved))
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(photos / "new.png")
    again = ["fit", "-c", str(config)]
    assert with_proposal(again) == again
    assert parse(again[1:]) == resolved
