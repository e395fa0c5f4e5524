"""Data sets that are folders of image files, from tiny pictures written here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedssl.data.datasets import ArrayImages, FileImages, load_images
from fedssl.data.datasets.decoding import read_image
from fedssl.data.datasets.pixels import Decoding, square

RNG = np.random.default_rng(5)


def write_image(path: Path, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Writes noise and returns it, (H, W, 3) or (H, W)."""
    shape = (height, width, 3) if channels == 3 else (height, width)
    values = RNG.integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


# --- reading one file


def test_read_image_keeps_pixels_at_their_size(tmp_path: Path) -> None:
    values = write_image(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 8, 3).numpy(), values.transpose(2, 0, 1))
    grey = write_image(tmp_path / "b.png", channels=1)
    assert np.array_equal(read_image(tmp_path / "b.png", 8, 1)[0].numpy(), grey)
    assert np.array_equal(read_image(tmp_path / "b.png", 8, 3)[2].numpy(), grey)
    luma = np.array(Image.fromarray(values).convert("L"))
    assert np.array_equal(read_image(tmp_path / "a.png", 8, 1)[0].numpy(), luma)


@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 4)])
def test_read_image_cuts_the_centre(height: int, width: int, tmp_path: Path) -> None:
    values = write_image(tmp_path / "a.png", height, width)
    centre = values[(height - 4) // 2 :, (width - 4) // 2 :][:4, :4]
    assert np.array_equal(read_image(tmp_path / "a.png", 4, 3).numpy(), centre.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("size", [3, 5, 7, 50, 61, 113])
def test_read_image_of_any_size(suffix: str, size: int, tmp_path: Path) -> None:
    write_image(tmp_path / f"a{suffix}", 61, 113)
    for channels in (1, 3):
        assert read_image(tmp_path / f"a{suffix}", size, channels).shape == (channels, size, size)


def test_large_jpeg_decoded_at_reduced_size_is_close_to_the_png(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256))] * 2, 2)[..., :3])
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg", quality=95)
    png, jpeg = (read_image(tmp_path / f"a.{end}", 32, 3).float() for end in ("png", "jpg"))
    assert (png - jpeg).abs().max() < 8


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "cut.png", 64, 64)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "deep.tif")
    for name in ("cut.png", "empty.jpg", "text.png", "deep.tif"):
        with pytest.raises(ValueError, match=f"{name} is not a readable image"):
            read_image(tmp_path / name, 8, 3)
    with pytest.raises(FileNotFoundError, match=r"gone.png"):
        read_image(tmp_path / "gone.png", 8, 3)


# --- folder


def write_folder(root: Path) -> None:
    for split, name, number in (
        ("train", "cat", 3),
        ("train", "ant", 2),
        ("test", "cat", 1),
        ("test", "bee", 1),
    ):
        for i in range(number):
            write_image(root / split / name / f"{i}.png", 9, 12)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / "._0.png").write_text("no image")


def test_folder_classes_are_those_of_both_splits(tmp_path: Path) -> None:
    write_folder(tmp_path)
    train, test = (load_images("folder", split, tmp_path, image_size=6) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 2, 2, 2], [1, 2])
    assert train[0][0].shape == (3, 6, 6)


def test_files_on_demand_equal_those_in_memory(tmp_path: Path) -> None:
    for i in range(20):
        write_image(tmp_path / f"ümläut {i:02d}.png", 9, 12)
    lazy = load_images("folder", "train", tmp_path, image_size=6, channels=1, in_memory=False)
    held = load_images("folder", "train", tmp_path, image_size=6, channels=1)
    limited = load_images("folder", "train", tmp_path, image_size=6, channels=1, memory_limit=20 * 36 - 1)
    assert isinstance(lazy, FileImages)
    assert isinstance(held, ArrayImages)
    assert isinstance(limited, FileImages)
    assert lazy.labels.tolist() == [-1] * 20
    every = torch.arange(20)
    assert torch.equal(lazy.gather(every), held.gather(every))
    with torch.inference_mode():  # as Lightning evaluates
        assert torch.equal(lazy.gather(every), held.gather(every))
    part, chosen = lazy.subset(torch.tensor([4, 1, 19])), torch.tensor([2, 0])
    assert part.paths is lazy.paths
    assert torch.equal(part.gather(chosen), held.gather(torch.tensor([19, 4])))
    assert torch.equal(part[1][0], held[1][0])
    assert part.gather(chosen[:0]).shape == (0, 1, 6, 6)


def test_bad_files_are_refused_by_name_or_skipped_up_to_a_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(12):
        write_image(tmp_path / f"{i:02d} ü.png", 64, 64)
    (tmp_path / "05 ü.png").write_text("no picture")
    (tmp_path / "06 ü.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for in_memory in (True, False):
        with pytest.raises(
            ValueError, match=r"05 ü.png is not a readable image: .*skip them with --data.max_bad_files 3"
        ):
            load_images("folder", "train", tmp_path, 8, in_memory=in_memory, max_bad_files=2)
    (tmp_path / "07 ü.png").write_bytes((tmp_path / "07 ü.png").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"07 ü.png is not a readable image: .*truncated"):
        load_images("folder", "train", tmp_path, 8, max_bad_files=3)
    images = load_images("folder", "train", tmp_path, 8, in_memory=False, max_bad_files=4)
    assert [path.name[:2] for path in images.files] == ["00", "01", "02", "03", "04", "08", "09", "10", "11"]
    assert images.gather(torch.arange(9)).shape == (9, 3, 8, 8)
    assert images.account == "13 files: 9 images read, 4 skipped as unreadable"
    assert "image file is truncated; and 1 more" in caplog.messages[-1]


def test_what_is_skipped_and_changed_is_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "plain.png")
    write_image(tmp_path / "grey.png", channels=1)
    write_image(tmp_path / "wide.bmp", 8, 12)
    Image.new("CMYK", (8, 8)).save(tmp_path / "print.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "phone.jpg", exif=turned)
    Image.new("LA", (8, 8)).save(tmp_path / "clear.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for at, number in (("full", 60_000), ("dark", 4095)):
        Image.fromarray(np.full((8, 8), number, np.uint16)).save(tmp_path / f"{at}.png")
    for name in ("a.txt", "deep/b.TXT", "README", ".hidden"):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    (tmp_path / "deep" / "folder.png").mkdir()
    (tmp_path / "deep" / "again").symlink_to(tmp_path)
    assert load_images("folder", "train", tmp_path, 8).account == (
        "12 files: 9 images read, 3 skipped (not images: .txt 2, without ending 1), 1 converted from CMYK to RGB, "
        "1 converted from L to RGB, 1 converted from LA on white, 1 converted from P to RGB, "
        "1 converted from more than 8 bits, 1 converted from more than 8 bits, dark because the upper ones are empty: "
        "set --data.window, 1 cropped to a square, 1 of several frames, of which the first is read, 1 turned by EXIF"
    )


# --- images of any form


def decoded(path: Path, channels: int = 1, **settings: Any) -> list[Any]:
    return read_image(path, 2, channels, Decoding(**settings)).tolist()


def test_images_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the first row is the right-hand side
    Image.fromarray(np.array([[10, 20], [30, 40]], np.uint8)).save(tmp_path / "a.png", exif=turned)
    assert decoded(tmp_path / "a.png") == [[[30, 10], [40, 20]]]


def test_transparent_pixels_show_the_background(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[9, 255], [9, 0]]] * 2, np.uint8)).save(tmp_path / "a.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9])
    palette.save(tmp_path / "b.png", transparency=0)
    assert decoded(tmp_path / "a.png") == [[[9, 255]] * 2]
    assert decoded(tmp_path / "a.png", background="black") == [[[9, 0]] * 2]
    assert decoded(tmp_path / "b.png", 3) == [[[255, 255]] * 2] * 3


def test_images_become_square_by_crop_pad_or_stretch(tmp_path: Path) -> None:
    wide = np.array([[0, 0, 90, 90, 90, 90, 0, 0]] * 4, np.uint8)
    Image.fromarray(wide).save(tmp_path / "a.png")
    read = {fit: read_image(tmp_path / "a.png", 4, 1, Decoding(fit)) for fit in ("crop", "pad", "stretch")}
    assert read["crop"].unique().tolist() == [90]
    assert (read["pad"][0, 0].tolist(), read["pad"][0, 3].tolist()) == ([255] * 4, [255] * 4)
    assert read["pad"][0, 1].tolist() == read["stretch"][0, 0].tolist()
    for fit, whole in read.items():  # arrays alike
        array = square(wide[None, None], 4, 1, Decoding(fit))
        assert (array[0].int() - whole.int()).abs().max() <= 1


def test_a_window_chooses_among_more_than_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 900], [1000, 65535]], np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[-1, 0], [0.5, np.nan]], np.float32)).save(tmp_path / "b.tif")
    assert decoded(tmp_path / "a.png") == [[[0, 4], [4, 255]]]
    assert decoded(tmp_path / "a.png", window=(950, 200)) == [[[0, 64], [191, 255]]]
    assert decoded(tmp_path / "b.tif", window=(0, 2)) == [[[0, 128], [191, 128]]]
    with pytest.raises(ValueError, match=r"b.tif .* values of no known range: set --data.window"):
        decoded(tmp_path / "b.tif")


@pytest.mark.parametrize("suffix", ["tiff", "webp", "gif", "bmp", "ppm"])
def test_other_formats(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (200, 200, 200)).save(tmp_path / f"a.{suffix}")
    assert decoded(tmp_path / f"a.{suffix}") == [[[200, 200]] * 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit": "squeeze"}, "data.fit must be crop, pad, stretch, got 'squeeze'"),
        ({"background": "red"}, "data.background must be white, black, got 'red'"),
        ({"window": (40, 0)}, r"the width above 0: got \[40, 0\]"),
    ],
)
def test_forms_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_folder_unlabelled_train_and_labelled_test(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "1.jpg")
    write_image(tmp_path / "test" / "cat" / "1.jpg")
    assert load_images("folder", "train", tmp_path, image_size=8).labels.tolist() == [-1]
    assert load_images("folder", "test", tmp_path, image_size=8).classes == ("cat",)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train not found under root .*layout: train/<class>"):
        load_images("folder", "train", tmp_path, image_size=8)
    (tmp_path / "a.heic").touch()
    with pytest.raises(ValueError, match=r"no images .* 1 skipped \(not images: .heic 1\)\)\. Set --data.root to the"):
        load_images("folder", "train", tmp_path, image_size=8)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="split 'train' of folder has no images under"):
        load_images("folder", "train", tmp_path, image_size=8)
    write_image(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(ValueError, match="images of different sizes: set --data"):
        load_images("folder", "train", tmp_path)
    write_image(tmp_path / "train" / "stray.png")
    assert load_images("folder", "train", tmp_path, image_size=8).labels.tolist() == [0, -1]


# --- the known layouts


def test_tiny_imagenet(tmp_path: Path) -> None:
    base = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        write_image(base / "train" / wnid / "images" / f"{wnid}_0.JPEG", 64, 64)
    with pytest.raises(FileNotFoundError, match=r"val_annotations.txt not found"):
        load_images("tiny_imagenet", "test", tmp_path)
    for i in range(3):
        write_image(base / "val" / "images" / f"val_{i}.JPEG", 64, 64)
    annotations = base / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\nval_2.JPEG\tn02\t0\t0\t9\t9\n")
    train, test = (load_images("tiny_imagenet", split, tmp_path) for split in ("train", "test"))
    assert train.classes == test.classes == ("n01", "n02")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 0, 1])
    assert (test.image_size, test.channels) == (64, 3)
    annotations.write_text("val_0.JPEG\tn09\t0\t0\t9\t9\n")
    with pytest.raises(ValueError, match=r"classes \['n09'\] are not among"):
        load_images("tiny_imagenet", "test", tmp_path)


@pytest.mark.parametrize("above", ["caltech101", ""])
def test_caltech101_has_a_fixed_split_without_background(above: str, tmp_path: Path) -> None:
    base = tmp_path / above / "101_ObjectCategories"
    for name, number in (("ant", 5), ("BACKGROUND_Google", 5), ("yin_yang", 10)):
        for i in range(number):
            write_image(base / name / f"image_{i:04d}.jpg", 8, 9)
    train, test = (load_images("caltech101", split, tmp_path, image_size=8) for split in ("train", "test"))
    assert train.classes == ("ant", "yin_yang")
    assert (torch.bincount(train.labels).tolist(), torch.bincount(test.labels).tolist()) == ([4, 8], [1, 2])
    again = load_images("caltech101", "test", tmp_path, image_size=8)
    assert torch.equal(again.gather(torch.arange(3)), test.gather(torch.arange(3)))


def test_coco_is_unlabelled(tmp_path: Path) -> None:
    write_image(tmp_path / "train2017" / "000000000009.jpg", 48, 64)
    write_image(tmp_path / "coco" / "unlabeled2017" / "000000000001.jpg", 48, 64)
    for split in ("train", "unlabeled"):
        images = load_images("coco", split, tmp_path, image_size=32)
        assert (images.labels.tolist(), images.classes) == ([-1], ())


@pytest.mark.parametrize("name", ["tiny_imagenet", "caltech101", "coco"])
def test_missing_folder_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not found under root .*Get it from https?://.*expected layout"):
        load_images(name, "train", tmp_path, image_size=8)
