"""The image sets, their pixels, the arguments of the loader, and the digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedssl.data.datasets import DATASETS, ArrayImages, load_images
from fedssl.data.datasets.pixels import square, to_grey
from fedssl.data.datasets.source import stratified_split

RNG = np.random.default_rng(3)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# --- image sets and pixels


def test_subset_shares_the_pixels_also_when_nested() -> None:
    images = torch.from_numpy(pixels(10, 3, 4, 4))
    whole = ArrayImages("x", images, torch.arange(10), [str(c) for c in range(10)])
    part = whole.subset(torch.tensor([7, 2, 5])).subset(torch.tensor([2, 0]))
    assert part.images.data_ptr() == images.data_ptr() == whole.images.data_ptr()
    assert len(part) == 2
    assert part.labels.tolist() == [5, 7]
    assert torch.equal(part.gather(torch.tensor([1, 0, 1])), images[[7, 5, 7]])
    image, label = part[0]
    assert label == 5
    assert torch.equal(image, images[5])
    assert (len(whole), len(whole.subset(torch.tensor([], dtype=torch.int64)))) == (10, 0)


def test_image_set_describes_itself_and_ends() -> None:
    whole = ArrayImages("x", torch.from_numpy(pixels(3, 1, 4, 4)), torch.full((3,), -1), ())
    assert (whole.channels, whole.image_size, whole.classes, whole.in_memory) == (1, 4, (), True)
    assert "3 images of 1x4x4" in repr(whole)
    with pytest.raises(IndexError):
        whole[3]


def test_array_images_refuses_other_tensors() -> None:
    with pytest.raises(ValueError, match="float32"):
        ArrayImages("x", torch.zeros(2, 3, 4, 4), torch.zeros(2), ())
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\)"):
        ArrayImages("x", torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2), ())
    with pytest.raises(ValueError, match="labels"):
        ArrayImages("x", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), ())


def test_grey_is_pillows_luma() -> None:
    images = pixels(2, 3, 5, 5)
    images[0, :, 0, 0] = 255
    expected = [np.array(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in images]
    assert np.array_equal(to_grey(torch.from_numpy(images)).squeeze(1).numpy(), expected)
    assert to_grey(torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)).item() == 76  # 0.299 * 255


def test_square_repeats_grey_without_storing_it_three_times() -> None:
    images = square(pixels(5, 1, 4, 4), 4, 3)
    assert images.shape == (5, 3, 4, 4)
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.untyped_storage().nbytes() == 5 * 16


def test_square_scales_the_shorter_side_and_cuts_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((7, 1, 4, 8), np.uint8)
    images[:, :, :, 2:6] = 200
    assert torch.all(square(images, 4, 1) == 200)
    noise = pixels(7, 3, 12, 9)
    whole = square(noise, 6, 3)
    monkeypatch.setattr("fedssl.data.datasets.pixels.CHUNK_BYTES", 1000)
    assert torch.equal(square(noise, 6, 3), whole)
    assert square(np.full((1, 1, 4, 4), 90, np.uint8), 11, 1).unique().tolist() == [90]


def test_stratified_split_is_fixed_and_complete() -> None:
    labels = np.repeat([0, 1, 2], [10, 5, 1])
    train, test = stratified_split(labels, 0.2, seed=1)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(16))
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 1, 0]
    assert test.tolist() == stratified_split(labels, 0.2, seed=1)[1].tolist()


# --- arguments


@pytest.mark.parametrize(("name", "near"), [("CIFAR-10", "did you mean cifar10"), ("fashionmnist", "fashion_mnist")])
def test_unknown_name_offers_near_ones(name: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"unknown data set '{name}': .*{near}.*known are digits"):
        load_images(name, "train", tmp_path)


def test_argument_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'val' of digits does not exist: allowed are train, test"):
        load_images("digits", "val", tmp_path)
    with pytest.raises(ValueError, match="image_size must be positive, got 0"):
        load_images("digits", "train", tmp_path, image_size=0)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        load_images("digits", "train", tmp_path, channels=2)
    with pytest.raises(ValueError, match="digits is stored as arrays and can only be held in memory"):
        load_images("digits", "train", tmp_path, in_memory=False)
    with pytest.raises(ValueError, match=r"92032 bytes at 8x8: .* raise memory_limit 1000"):
        load_images("digits", "train", tmp_path, memory_limit=1000)
    assert len(load_images("digits", "train", tmp_path, memory_limit=1000, in_memory=True)) > 1000


def test_registry_has_the_promised_names() -> None:
    promised = {
        "digits",
        "cifar10",
        "cifar100",
        "stl10",
        "fashion_mnist",
        "tiny_imagenet",
        "caltech101",
        "coco",
    }
    assert promised | {"folder", "pathmnist", "bloodmnist", "dermamnist", "organamnist"} <= set(DATASETS)


# --- digits


def test_digits_split_is_stratified_and_fixed(tmp_path: Path) -> None:
    train, test = (load_images("digits", split, tmp_path / "absent") for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    assert (train.channels, train.image_size, train.labels.dtype) == (1, 8, torch.int64)
    assert torch.bincount(test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    everything = train.gather(torch.arange(len(train)))
    assert (int(everything.min()), int(everything.max())) == (0, 255)
    assert int(test.gather(torch.arange(len(test))).long().sum()) == 1804817  # the very same images in every version


def test_digits_at_another_size(tmp_path: Path) -> None:
    train = load_images("digits", "train", tmp_path, image_size=16, channels=3)
    assert train[0][0].shape == (3, 16, 16)
