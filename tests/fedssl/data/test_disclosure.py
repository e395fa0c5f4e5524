"""What of a user's own data stands in what is handed on: no image, no file name, no path, unless it was asked for."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import train
from tiny_runs import TINY_FEDERATION
from wandb_file import history

from fedssl.__main__ import main
from fedssl.data.datasets.registry import is_public
from fedssl.data.disclosure import LEFT_OUT, without_paths

CLASSES = ("healthy", "ill")
FIT = ["fit", "-c", "lw_fedssl.yaml", *TINY_FEDERATION, "--model.rounds=2", "--data.train_images=24"]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders of two classes, with patients' names as file names."""
    root = tmp_path_factory.mktemp("ward7")
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("test", 8)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"doe_{name}_{index}.png")
    return root


def fit_own(hospital: Path, folder: Path) -> list[str]:
    data = ["--data.dataset=folder", f"--data.root={hospital}", "--data.image_size=16", "--data.channels=1"]
    return [*FIT, *data, f"--run_dir={folder}"]


def own(hospital: Path, folder: Path, *arguments: str) -> Path:
    # A process of its own: what W&B keeps of runs of other tests is none of this one's.
    train(*fit_own(hospital, folder), *arguments)
    return folder


@pytest.fixture(scope="module")
def hidden(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own(hospital, tmp_path_factory.mktemp("hidden") / "run")


def handed_on(folder: Path) -> list[Path]:
    """Files of a run that leave the machine: W&B's, the report and its details."""
    synced = [path for path in folder.glob("wandb/offline-run-*/files/**/*") if path.is_file()]
    return [*synced, *folder.glob("wandb/offline-run-*/*.wandb"), folder / "report.html", folder / "details.npz"]


def pictures_in_wandb(folder: Path) -> list[str]:
    return [key for row in history(folder) for key in row if key.endswith("/_type") and row[key] == "image-file"]


def pixels_of(folder: Path) -> tuple[int, ...]:
    with np.load(folder / "details.npz") as details:
        kept = [details[key] for key in details.files if details[key].dtype == np.uint8]
    return tuple(len(array) for array in kept)


@pytest.mark.slow
def test_no_image_of_ones_own_is_handed_on(hidden: Path) -> None:
    assert pixels_of(hidden) == (0, 0, 0)
    assert "Nearest images" not in (hidden / "report.html").read_text()
    assert pictures_in_wandb(hidden)
    assert not [key for key in pictures_in_wandb(hidden) if "Neighbours" in key]
    with np.load(hidden / "details.npz") as details:
        assert details["encoder.neighbour_labels"].shape == (10, 5)
        assert details["classes"].tolist() == list(CLASSES)


@pytest.mark.slow
def test_no_picture_in_the_report_has_pixels_of_the_data(hidden: Path, hospital: Path) -> None:
    """Whatever is drawn: no embedded picture holds rows of an image of the data."""
    rows = {bytes(np.asarray(Image.open(path))[8]) for path in hospital.rglob("*.png")}
    parts = (hidden / "report.html").read_text().split("data:image/png;base64,")[1:]
    assert parts
    for part in parts:
        picture = Image.open(io.BytesIO(base64.b64decode(part.partition('"')[0]))).convert("L")
        assert not rows & {bytes(row)[at : at + 16] for row in np.asarray(picture) for at in range(len(row))}


@pytest.mark.slow
def test_no_path_and_no_file_name_is_handed_on(hidden: Path, hospital: Path) -> None:
    files = handed_on(hidden)
    assert len(files) > 5
    for word in (hospital.name, "doe_", str(hidden.parent)):
        assert not [path.name for path in files if word.encode() in path.read_bytes()], word
    with np.load(hidden / "details.npz") as details:
        texts = [str(details[key]) for key in details.files if details[key].dtype.kind == "U"]
    assert hospital.name not in " ".join(texts)


@pytest.mark.slow
def test_images_of_ones_own_are_shown_when_asked_for(hospital: Path, tmp_path: Path) -> None:
    shown = own(hospital, tmp_path / "run", "--show_images=true")
    assert pixels_of(shown) == (10, 10, 10)
    assert "Nearest images after training" in (shown / "report.html").read_text()
    assert [key for key in pictures_in_wandb(shown) if "Neighbours" in key]


@pytest.mark.report
@pytest.mark.slow
def test_images_of_public_data_can_be_kept_out(tmp_path: Path) -> None:
    main([*FIT, "--trainer.logger=false", "--show_images=false", f"--run_dir={tmp_path / 'run'}"])
    assert pixels_of(tmp_path / "run") == (0, 0, 0)


@pytest.mark.report
def test_the_terminal_says_how_to_show_them(hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*fit_own(hospital, tmp_path / "run"), "--trainer.logger=false"])
    assert "(without your images; --show_images true shows them)" in capsys.readouterr().out
    assert pixels_of(tmp_path / "run") == (0, 0, 0)


@pytest.mark.parametrize("name", ["digits", "cifar10", "bloodmnist", "bloodmnist_64", "stl10"])
def test_a_data_set_that_everybody_has_is_public(name: str) -> None:
    assert is_public(name)


@pytest.mark.parametrize("name", ["folder", "medmnist:ward7", "ward7", "Digits"])
def test_ones_own_data_are_not(name: str) -> None:
    assert not is_public(name)


def test_places_are_left_out_of_settings() -> None:
    settings = {
        "data": {"init_args": {"root": "patients", "dataset": "folder", "files": ["/home/doe/a.csv", "~/b"]}},
        "model": {"encoder": {"weights": None, "name": "resnet18", "heads": 4}, "heads": "ward7"},
    }
    assert without_paths(settings) == {
        "data": {"init_args": {"root": LEFT_OUT, "dataset": "folder", "files": [LEFT_OUT, LEFT_OUT]}},
        "model": {"encoder": {"weights": None, "name": "resnet18", "heads": 4}, "heads": LEFT_OUT},
    }
