"""Data sets stored as arrays, from tiny files written here and from real ones in FEDSSL_DATA."""

import gzip
import os
import pickle
import re
import sys
import tarfile
import types
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from fedssl.data.datasets import ArrayImages, load_images
from fedssl.data.datasets.arrays import read_idx

RNG = np.random.default_rng(3)


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = os.environ.get("FEDSSL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("FEDSSL_DATA does not name a folder of real data")
    return Path(root)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    for dataset in (tv.CIFAR10, tv.CIFAR100, tv.STL10, tv.FashionMNIST):
        monkeypatch.setattr(dataset, "download", fail)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# --- CIFAR


def write_cifar(folder: Path, images: int = 4) -> None:
    folder.mkdir()
    for name, _ in tv.CIFAR10.train_list + tv.CIFAR10.test_list:
        batch = {"data": pixels(images, 3072), "labels": list(range(images)), "filenames": ["x"] * images}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"label_names": [str(c) for c in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


def test_cifar_reads_a_folder_with_other_checksums(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    train, _ = (load_images("cifar10", split, tmp_path, download=False) for split in ("train", "test"))
    (said,) = caplog.messages
    assert re.match("CIFAR10: not the official bytes.*: data_batch_1, .*, test_batch, batches.meta in ", said)
    assert (len(train), train.channels, train.image_size, len(train.classes)) == (20, 3, 32, 10)
    batch = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    assert torch.equal(train[5][0].reshape(-1), torch.from_numpy(batch["data"][1]))
    assert train.labels[4:8].tolist() == [0, 1, 2, 3]


def test_cifar100_has_the_fine_classes(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch: dict[str, Any] = {"data": pixels(3, 3072), "fine_labels": [99, 0, 7], "coarse_labels": [1, 2, 3]}
    (folder / "test").write_bytes(pickle.dumps(batch, protocol=2))
    names = {"fine_label_names": [str(c) for c in range(100)], "coarse_label_names": ["x"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(names))
    test = load_images("cifar100", "test", tmp_path)
    assert (test.labels.tolist(), len(test.classes)) == ([99, 0, 7], 100)
    assert np.array_equal(test.gather(torch.arange(3)).reshape(3, -1).numpy(), batch["data"])


@pytest.mark.parametrize("end", ["gz", "xz"])
def test_cifar_unpacks_an_archive_beside_itself(end: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_cifar(tmp_path / "cifar-10-batches-py")
    with tarfile.open(root / f"cifar-10-python.tar.{end}", "w:gz" if end == "gz" else "w:xz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    assert len(load_images("cifar10", "test", root, download=False)) == 4
    assert sorted(path.name for path in root.iterdir()) == [
        "cifar-10-batches-py",
        f"cifar-10-python.tar.{end}",
    ]


def test_cifar_tells_if_the_root_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("read-only")

    (tmp_path / "cifar-10-python.tar.xz").touch()
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.xz cannot be unpacked, .* writable\? read-only"):
        load_images("cifar10", "train", tmp_path)


def test_cifar_damaged_or_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(bytes(5000))[:20])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz cannot be unpacked"):
        load_images("cifar10", "train", tmp_path)
    write_cifar(folder)
    (folder / "test_batch").write_bytes(b"nothing")
    with (
        pytest.raises(ValueError, match="test_batch is not a readable CIFAR"),
    ):
        load_images("cifar10", "test", tmp_path)
    (folder / "test_batch").unlink()
    for download in (False, True):  # which must not replace the files that are there
        with pytest.raises(ValueError, match=r"batches-py is incomplete, without test_batch: add what is missing"):
            load_images("cifar10", "test", tmp_path, download=download)


def test_cifar_batches_run_no_code(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "test_batch").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with (
        pytest.raises(ValueError, match=r"os.system is not allowed"),
    ):
        load_images("cifar10", "test", tmp_path)


@pytest.fixture(scope="session")
def real_cifar(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = real_data / "cifar-10-python.tar.xz"
    if not archive.is_file():
        pytest.skip("no cifar-10-python.tar.xz in FEDSSL_DATA")
    root = tmp_path_factory.mktemp("cifar")
    (root / archive.name).symlink_to(archive)
    return root


@pytest.mark.slow
def test_real_cifar10(real_cifar: Path) -> None:
    train = load_images("cifar10", "train", real_cifar)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert train.classes[6] == "frog"
    assert (train[0][1], train[0][0][:, 0, 0].tolist()) == (6, [59, 62, 63])  # the well-known frog
    mean = train.gather(torch.arange(50_000)).float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    test = load_images("cifar10", "test", real_cifar, image_size=16, channels=1)
    assert (len(test), test[0][0].shape) == (10_000, (1, 16, 16))


# --- Fashion-MNIST


def write_idx(path: Path, values: np.ndarray) -> None:
    content = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_fashion_mnist_reads_packed_and_plain_files_in_place(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    images = pixels(3, 28, 28)
    write_idx(raw / "train-images-idx3-ubyte.gz", images)
    write_idx(raw / "train-labels-idx1-ubyte", np.array([2, 0, 9], np.uint8))
    train = load_images("fashion_mnist", "train", tmp_path, download=False)
    assert np.array_equal(train.gather(torch.arange(3)).squeeze(1).numpy(), images)
    assert (train.labels.tolist(), train.classes[9]) == ([2, 0, 9], "Ankle boot")
    assert len(list(raw.iterdir())) == 2
    write_idx(raw / "train-labels-idx1-ubyte", np.array([2, 0], np.uint8))
    with pytest.raises(ValueError, match="do not belong together"):
        load_images("fashion_mnist", "train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01", b"\0\0\x08\x01\0\0\0\x09abc", b"\0\0\x08"])
def test_fashion_mnist_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    write_idx(raw / "t10k-labels-idx1-ubyte", np.zeros(1, np.uint8))
    (raw / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is not a readable IDX file"):
        load_images("fashion_mnist", "test", tmp_path)


def test_real_fashion_mnist(real_data: Path) -> None:
    if not (real_data / "FashionMNIST").is_dir():
        pytest.skip("no FashionMNIST in FEDSSL_DATA")
    test = load_images("fashion_mnist", "test", real_data, image_size=32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert (test.channels, test.image_size) == (1, 32)
    train = load_images("fashion_mnist", "train", real_data, download=False)
    assert train.gather(torch.arange(60_000)).float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-4)


# --- STL-10


def test_stl10_splits(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = pixels(4, 3, 96, 96)
    for split in ("train", "unlabeled"):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 3, 3]))
    train = load_images("stl10", "train", tmp_path)
    assert np.array_equal(train.gather(torch.arange(4)).numpy(), images)
    assert (train.labels.tolist(), train.classes[9]) == ([0, 9, 2, 2], "truck")
    unlabeled = load_images("stl10", "unlabeled", tmp_path, image_size=32)
    assert (unlabeled.labels.tolist(), unlabeled.classes, unlabeled.image_size) == ([-1] * 4, (), 32)
    (folder / "train_y.bin").write_bytes(bytes([1, 11, 3, 3]))
    with pytest.raises(ValueError, match=r"train_y.bin must hold 4 labels from 1 to 10"):
        load_images("stl10", "train", tmp_path)
    (folder / "train_X.bin").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"train_X.bin has 100 bytes"):
        load_images("stl10", "train", tmp_path)


# --- MedMNIST


def write_npz(path: Path, size: int = 28, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {}
    for split, number in (("train", 6), ("val", 2), ("test", 3)):
        content[f"{split}_images"] = pixels(number, size, size, 3)
        content[f"{split}_labels"] = np.arange(number, dtype=np.uint8)[:, None]
    np.savez(path, **(content | arrays))


@pytest.mark.parametrize("name", ["bloodmnist", "bloodmnist_64", "medmnist:own"])
@pytest.mark.parametrize("folder", ["", "medmnist"])
def test_medmnist_names_and_places(name: str, folder: str, tmp_path: Path) -> None:
    size = 64 if name.endswith("64") else 28
    write_npz(tmp_path / folder / f"{name.removeprefix('medmnist:')}.npz", size)
    parts = [load_images(name, split, tmp_path, download=False) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 2, 3]
    assert {(part.channels, part.image_size) for part in parts} == {(3, size)}
    assert {part.classes for part in parts} == {tuple("012345")}
    assert parts[2].labels.tolist() == [0, 1, 2]


def test_medmnist_other_forms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_npz(tmp_path / "pneumoniamnist.npz", train_images=pixels(6, 28, 28))
    assert load_images("pneumoniamnist", "train", tmp_path).channels == 1
    write_npz(tmp_path / "chestmnist.npz", val_labels=np.zeros((2, 14), np.uint8))
    assert load_images("chestmnist", "val", tmp_path).labels.tolist() == [-1, -1]
    assert "14 labels an image" in caplog.text
    write_npz(tmp_path / "solid.npz", train_images=pixels(6, 4, 4, 4))
    with pytest.raises(ValueError, match=r"solid.npz: images must be uint8 .*\(6, 4, 4, 4\)"):
        load_images("medmnist:solid", "train", tmp_path)
    (tmp_path / "octmnist.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match=r"octmnist.npz is not a readable npz"):
        load_images("octmnist", "train", tmp_path)
    np.savez(tmp_path / "half.npz", train_images=pixels(6, 4, 4))
    with pytest.raises(ValueError, match=r"half.npz lacks 'train_labels'"):
        load_images("medmnist:half", "train", tmp_path)
    with pytest.raises(ValueError, match=r"half.npz lacks .*test_images"):
        load_images("medmnist:half", "test", tmp_path)
    write_npz(tmp_path / "none.npz", train_images=pixels(0, 4, 4), train_labels=np.zeros((0, 1), np.uint8))
    with pytest.raises(ValueError, match=r"split 'train' of medmnist:none has no images"):
        load_images("medmnist:none", "train", tmp_path)


def test_medmnist_downloads_through_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(split: str, download: bool, root: str, size: int) -> None:
        write_npz(Path(root) / f"bloodmnist_{size}.npz", size)

    package = types.ModuleType("medmnist")
    package.INFO = {"bloodmnist": {"python_class": "BloodMNIST"}}  # type: ignore[attr-defined]
    package.BloodMNIST = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medmnist", package)
    assert load_images("bloodmnist_64", "train", tmp_path / "new").image_size == 64


def test_medmnist_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(FileNotFoundError, match=r"bloodmnist.npz not found under .*pip install medmnist"):
        load_images("bloodmnist", "train", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"blodmnist is not a member of MedMNIST: bloodmnist"):
        load_images("medmnist:blodmnist", "train", tmp_path)


def test_real_bloodmnist_subset(real_data: Path) -> None:
    if not (real_data / "medmnist" / "bloodmnist_subset.npz").is_file():
        pytest.skip("no medmnist/bloodmnist_subset.npz in FEDSSL_DATA")
    test = load_images("medmnist:bloodmnist_subset", "test", real_data)
    assert (len(test), len(test.classes), test.channels, test.image_size) == (1511, 8, 3, 28)


# --- what is absent


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "fashion_mnist"])
def test_failed_download_says_what_was_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not found under root .*no network.*Get it from http.*layout"):
        load_images(name, "train", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="download=False"):
        load_images(name, "train", tmp_path, download=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.5, 2.5], "train_labels must be whole numbers"),
        ([0.0, np.nan, 1.0], "train_labels must be whole numbers"),
        ([0.0, np.inf, 1.0], "train_labels must be whole numbers"),
        (["a", "b", "c"], "train_labels must be whole numbers"),
        ([0, 1, 999_999], "labels go up to 999999, but there are 6: number the classes from 0"),
    ],
)
def test_medmnist_labels_are_classes(labels: list[Any], message: str, tmp_path: Path) -> None:
    images, good = pixels(3, 8, 8), np.arange(3)[:, None]
    bad = np.array(labels)[:, None]
    np.savez(tmp_path / "odd.npz", train_images=images, train_labels=bad, test_images=images, test_labels=good)
    with pytest.raises(ValueError, match=rf"odd\.npz: .*{message}"):
        load_images("medmnist:odd", "train", tmp_path)


def test_labels_that_are_whole_floats_are_taken(tmp_path: Path) -> None:
    images = pixels(3, 8, 8)
    np.savez(tmp_path / "odd.npz", train_images=images, train_labels=np.array([[0.0], [2.0], [1.0]]))
    assert load_images("medmnist:odd", "train", tmp_path).labels.tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="labels of mine must be whole numbers"):
        ArrayImages("mine", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0.0, 0.5]), ["a"])


def test_medmnist_has_a_label_an_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", train_images=pixels(3, 8, 8), train_labels=np.arange(2)[:, None])
    with pytest.raises(ValueError, match=r"odd\.npz: train has 3 images and 2 labels"):
        load_images("medmnist:odd", "train", tmp_path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"garbage_garbage_", "it starts with b'garb'"),
        (bytes((0, 0, 13, 3)) + np.array([20, 28, 28], ">u4").tobytes(), "it starts with"),
        (bytes((0, 0, 8, 3)) + np.array([10, 56, 28], ">u4").tobytes(), r"its header has shape \(10, 56, 28\)"),
        (bytes((0, 0, 8, 3)) + np.array([23, 28, 28], ">u4").tobytes(), "cannot reshape"),
    ],
)
def test_an_idx_file_is_what_its_header_says(header: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(header + bytes(20 * 28 * 28))
    with pytest.raises(ValueError, match=rf"images is not a readable IDX file of bytes: {reason}"):
        read_idx(path, (-1, 28, 28))
