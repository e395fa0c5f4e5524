"""Data sets stored as folders of image files: Tiny ImageNet, Caltech-101, COCO, and the user's own."""

import errno
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedssl.data.datasets.listing import files_below, image_files, images_below, is_image, subfolders
from fedssl.data.datasets.source import Files, Loader, find, stratified_split

COCO_FOLDERS = {"train": "train2017", "test": "val2017", "unlabeled": "unlabeled2017"}
CALTECH101_SPLIT_SEED = 101


def labelled(folders: dict[str, list[Path]]) -> Files:
    """Label files by their key, with classes numbered in the order of their names.

    Raises:
        FileNotFoundError: There are no folders.
    """
    if not folders:
        raise FileNotFoundError(errno.ENOENT, "no folders of classes", "a folder for each class")
    classes = sorted(folders)
    labels = [np.full(len(folders[name]), label) for label, name in enumerate(classes)]
    return Files([path for name in classes for path in folders[name]], np.concatenate(labels), classes)


def labelled_files(folders: dict[str, list[Path]], classes: Iterable[str]) -> Files:
    """Label files by their folder, numbered among all ``classes``, of which some may have no files."""
    return labelled({name: folders.get(name, []) for name in classes})


def unlabelled(paths: list[Path]) -> Files:
    return Files(paths, np.full(len(paths), -1), ())


def read_tiny_imagenet(root: Path, split: str) -> Files:
    """Read Tiny ImageNet (Le and Yang 2015), 200 classes of 64x64; "test" is the official validation set.

    Raises:
        FileNotFoundError: The folders are absent.
        ValueError: An annotation names no known class.
    """
    base = root / "tiny-imagenet-200"
    wnids = subfolders(find(base / "train"))
    annotations = base / "val" / "val_annotations.txt"
    if split == "train":
        files = labelled({wnid.name: image_files(wnid / "images") for wnid in wnids})
        return Files(files.paths, files.labels, files.classes, image_size=64)
    classes = [wnid.name for wnid in wnids]
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
    unknown = sorted({row[-1] for row in rows} - set(classes))
    if unknown:
        raise ValueError(f"{annotations}: classes {unknown[:5]} are not among the folders of train")
    paths = [base / "val" / "images" / name for name, _ in rows]
    return Files(paths, np.array([classes.index(wnid) for _, wnid in rows]), classes, image_size=64)


def read_caltech101(root: Path, split: str) -> Files:
    """Read Caltech-101 (Fei-Fei et al. 2004) without the background class, with a fixed stratified 80/20 split.

    Raises:
        FileNotFoundError: The folder is absent.
    """
    base = find(root / "caltech101" / "101_ObjectCategories", root / "101_ObjectCategories")
    every = labelled({f.name: image_files(f) for f in subfolders(base) if f.name != "BACKGROUND_Google"})
    train, test = stratified_split(every.labels, test_fraction=0.2, seed=CALTECH101_SPLIT_SEED)
    chosen = train if split == "train" else test
    return Files([every.paths[i] for i in chosen], every.labels[chosen], every.classes)


def read_coco(root: Path, split: str) -> Files:
    """Read COCO 2017 (Lin et al. 2014), images only; "test" is the validation set, the official test set is not used.

    Raises:
        FileNotFoundError: The folder is absent.
    """
    return unlabelled(image_files(find(root / COCO_FOLDERS[split], root / "coco" / COCO_FOLDERS[split])))


def read_folder(root: Path, split: str) -> Files:
    """Read a user's own images: one folder a class, at any depth, or no classes at all.

    Classes are those of train and test together, so that both splits number them alike. Images beside the folders of
    the classes have no label.

    Raises:
        FileNotFoundError: The split's folder does not exist, nor, for "train", images in the root.
    """
    if split == "train" and not (root / split).is_dir():
        tests = root / "test"
        every = [path for path in files_below(root) if tests not in path.parents]
        if every:
            return unlabelled_among(every)
    base = find(root / split)
    own = {folder.name: images_below(folder) for folder in subfolders(base)}
    files, loose = unlabelled([]), unlabelled(image_files(base))
    if any(own.values()):
        classes = {folder.name for part in ("train", "test") for folder in subfolders(root / part)}
        files = labelled_files(own, classes)
    labels = np.concatenate([files.labels, loose.labels])
    return Files([*files.paths, *loose.paths], labels, files.classes, others=not_images(files_below(base)))


def unlabelled_among(every: list[Path]) -> Files:
    """Take the images among the files, without labels."""
    return replace(unlabelled([path for path in every if is_image(path)]), others=not_images(every))


def not_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are no images by their names."""
    return [path for path in paths if not is_image(path)]


FOLDER_LOADERS = {
    "tiny_imagenet": Loader(
        read_tiny_imagenet,
        "Tiny ImageNet",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "tiny-imagenet-200/{train/<wnid>/images/*.JPEG,val/images/*.JPEG,val/val_annotations.txt}",
    ),
    "caltech101": Loader(
        read_caltech101,
        "Caltech-101",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "caltech101/101_ObjectCategories/<class>/*.jpg or 101_ObjectCategories/<class>/*.jpg",
    ),
    "coco": Loader(
        read_coco,
        "COCO",
        "https://cocodataset.org",
        "train2017/*.jpg, val2017/*.jpg, unlabeled2017/*.jpg, or these in coco/",
        splits=tuple(COCO_FOLDERS),
    ),
    "folder": Loader(
        read_folder,
        "image folder",
        "",
        "train/<class>/* and test/<class>/*, or unlabelled: train/*, or images at any depth of the root",
    ),
}
