"""Data sets in one array each: scikit-learn's digits, Fashion-MNIST and STL-10."""

import gzip
import importlib
import logging
import re
import zipfile
import zlib
from functools import cache, partial
from pathlib import Path

import numpy as np
import torchvision.datasets as tv
from sklearn.datasets import load_digits

from fedssl.data.datasets.source import Arrays, Loader, find, stratified_split

logger = logging.getLogger(__name__)
DIGITS_SPLIT_SEED = 1797
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
STL10_IMAGE_BYTES = 3 * 96 * 96


def read_digits(root: Path, split: str) -> Arrays:
    """Read handwritten digits, 1,797 grey images of 8x8 that come with scikit-learn, with a fixed stratified split.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part). Values 0..16 are
    scaled to 0..255; a fifth is the test split. Nothing is read from ``root``.
    """
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    train, test = stratified_split(digits.target, test_fraction=0.2, seed=DIGITS_SPLIT_SEED)
    chosen = train if split == "train" else test
    return Arrays(images[chosen], digits.target[chosen], [str(d) for d in range(10)])


def read_fashion_mnist(root: Path, split: str) -> Arrays:
    """Read Fashion-MNIST (Xiao et al. 2017), grey images of 28x28 in 10 classes.

    Files are read in place, packed or not: torchvision's reader would unpack them beside themselves.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged.
    """
    raw, stem = root / "FashionMNIST" / "raw", "train" if split == "train" else "t10k"
    images = read_idx(raw / f"{stem}-images-idx3-ubyte", (-1, 28, 28))
    labels = read_idx(raw / f"{stem}-labels-idx1-ubyte", (-1,))
    if len(images) != len(labels):
        raise ValueError(f"{raw}: {len(images)} images and {len(labels)} labels of {stem} do not belong together")
    return Arrays(images[:, None], labels, tv.FashionMNIST.classes)


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or as ``.gz``: a header of 4 bytes and 4 an axis, then the values.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is damaged or of another shape; the message names it.
    """
    found = find(path, path.with_name(f"{path.name}.gz"))
    try:
        data = found.read_bytes() if found == path else gzip.decompress(found.read_bytes())
        # The header says how much there is: without it a file of other images, or one that was cut, would pass.
        if data[:4] != bytes((0, 0, 8, len(shape))):
            raise ValueError(f"it starts with {data[:4]!r}")
        sizes = tuple(np.frombuffer(data, ">u4", len(shape), offset=4).tolist())
        if sizes[1:] != shape[1:]:
            raise ValueError(f"its header has shape {sizes}, expected {shape}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(sizes)
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{found} is not a readable IDX file of bytes: {error}") from error


def read_stl10(root: Path, split: str) -> Arrays:
    """Map a split of STL-10 (Coates et al. 2011) into memory: colour images of 96x96, 10 classes.

    There are 5,000 train, 8,000 test and 100,000 unlabelled images; torchvision would read the latter's 2.7 GB at once.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file has the wrong length.
    """
    pixels, numbers = (root / "stl10_binary" / f"{split}_{part}.bin" for part in "Xy")
    size = find(pixels).stat().st_size
    if size == 0 or size % STL10_IMAGE_BYTES:
        raise ValueError(f"{pixels} has {size} bytes, not a positive multiple of {STL10_IMAGE_BYTES}")
    # planes are stored column by column
    images = np.memmap(pixels, np.uint8, mode="r").reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    if split == "unlabeled":
        return Arrays(images, np.full(len(images), -1), ())
    labels = np.fromfile(find(numbers), np.uint8).astype(np.int64) - 1
    if len(labels) != len(images) or not ((labels >= 0) & (labels < 10)).all():
        raise ValueError(f"{numbers} must hold {len(images)} labels from 1 to 10")
    return Arrays(images, labels, STL10_CLASSES)


DIGITS = Loader(read_digits)
FASHION_MNIST = Loader(
    read_fashion_mnist,
    "Fashion-MNIST",
    "https://github.com/zalandoresearch/fashion-mnist",
    "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, each also as .gz",
    lambda root: tv.FashionMNIST(str(root), download=True),
)
STL10 = Loader(
    read_stl10,
    "STL-10",
    "https://cs.stanford.edu/~acoates/stl10/",
    "stl10_binary/{train_X,train_y,test_X,test_y,unlabeled_X}.bin",
    lambda root: tv.STL10(str(root), download=True),
    ("train", "test", "unlabeled"),
)


MEMBERS = (
    "bloodmnist", "breastmnist", "chestmnist", "dermamnist", "octmnist", "organamnist",
    "organcmnist", "organsmnist", "pathmnist", "pneumoniamnist", "retinamnist", "tissuemnist",
)  # fmt: skip
MEMBER_AT_SIZE = re.compile(rf"({'|'.join(MEMBERS)})(?:_(64|128|224))?")


def medmnist_loader(stem: str) -> Loader:
    """Return the loader of ``<stem>.npz``: a member of MedMNIST, one at another size, or any file of this form."""
    read, download = partial(read_medmnist, stem), partial(download_member, stem)
    layout = f"{stem}.npz or medmnist/{stem}.npz"
    return Loader(read, f"MedMNIST {stem}", "https://medmnist.com", layout, download, ("train", "val", "test"))


def read_medmnist(stem: str, root: Path, split: str) -> Arrays:
    """Read ``<stem>.npz`` from ``root`` or ``root/medmnist``.

    Keys: ``<split>_images`` uint8 (N, H, W) or (N, H, W, 3) and ``<split>_labels`` (N, 1). The file stores no class
    names: classes are numbered over all its splits. Tasks with several labels an image (chestmnist) become unlabelled
    (-1), with a warning.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file is damaged or of another form.
    """
    path = find(root / f"{stem}.npz", root / "medmnist" / f"{stem}.npz")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            images = file[f"{split}_images"]
            labels = {key: file[key] for key in file.files if key.endswith("_labels")}
            chosen = labels[f"{split}_labels"]
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"{path}: images must be uint8 (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}")
    if len(chosen) != len(images):
        raise ValueError(f"{path}: {split} has {len(images)} images and {len(chosen)} labels")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if chosen.ndim == 2 and chosen.shape[1] > 1:
        warn_of_many_labels(path, chosen.shape[1])
        return Arrays(images, np.full(len(chosen), -1), [])
    classes = [str(c) for c in range(number_of_classes(path, labels))]
    return Arrays(images, chosen.ravel().astype(np.int64), classes)


# Cached: the splits are read one after another, and their user shall be told once.
@cache
def warn_of_many_labels(path: Path, labels: int) -> None:
    """Log that a file's labels are not used."""
    logger.warning("%s: %d labels an image; used as unlabelled images", path, labels)


def number_of_classes(path: Path, labels: dict[str, np.ndarray]) -> int:
    """Return the number of classes over all splits, from their highest label.

    Raises:
        ValueError: Labels are no whole numbers, or imply more classes than images.
    """
    for key, values in labels.items():
        if values.dtype.kind not in "iuf" or not (np.isfinite(values) & (values == np.floor(values))).all():
            raise ValueError(f"{path}: {key} must be whole numbers, the classes from 0")
    classes = max((int(values.max()) for values in labels.values() if values.size), default=-1) + 1
    images = sum(len(values) for values in labels.values())
    if classes > images:
        raise ValueError(f"{path}: labels go up to {classes - 1}, but there are {images}: number the classes from 0")
    return classes


def download_member(stem: str, root: Path) -> None:
    """Download a member with the ``medmnist`` package; raise RuntimeError without it or for other files."""
    match = MEMBER_AT_SIZE.fullmatch(stem)
    if match is None:
        raise RuntimeError(f"{stem} is not a member of MedMNIST: {', '.join(MEMBERS)}, or one with _64, _128, _224")
    try:
        package = importlib.import_module("medmnist")
    except ImportError as error:
        raise RuntimeError("pip install medmnist to download it, or fetch the file yourself") from error
    member = getattr(package, package.INFO[match[1]]["python_class"])
    member(split="train", download=True, root=str(root), size=int(match[2] or 28))
