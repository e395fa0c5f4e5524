"""Lightning data modules of images for pretraining, for the federation and for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from fedssl.data.clients import Batches, ClientData, ClientDatasets, cut, divide, in_order
from fedssl.data.datasets import ImageSet, load_images
from fedssl.data.datasets.pixels import Decoding
from fedssl.data.datasets.registry import find_loader
from fedssl.data.datasets.source import Loader
from fedssl.data.partition import IID, Partitioner
from fedssl.utils.seeding import numpy_generator, run_seed, torch_generator
from ssl_methods import check_at_least

logger = logging.getLogger(__name__)

LOOKED_AT = 64
"""Number of images checked for being all equal."""

NO_EVALUATION = "none"
"""Name of the data set that nothing is evaluated on."""
MENDS = (
    "evaluate on a labelled set of another folder with --data.eval_root, on another data set with --data.eval_dataset, "
    "or not at all with --data.eval_dataset none"
)

EVERY_CLIENTS_OWN = 2
"""Batch size of pooled images that are never trained on."""


class ImageData(LightningDataModule):
    """Images of one data set, pooled, for centralised training.

    Args:
        dataset: Name of the data set to pretrain on.
        root: Folder of all data sets.
        image_size: Side of the square images in pixels; ``None`` keeps the data set's own.
        channels: Colour channels, 1 or 3; ``None`` keeps the data set's own.
        split: Split to pretrain on (``unlabeled`` for STL-10).
        train_images: Use only this many images of the split, drawn at random; ``None`` uses all.
        batch_size: Images in a training step.
        eval_dataset: Labelled data set to evaluate on, for transfer; ``none`` evaluates nothing. ``None`` takes
            ``dataset``, and evaluates nothing if it has no labels.
        eval_root: Folder of ``eval_dataset``; ``None`` takes ``root``.
        eval_train_split: Split with the labelled images of the kNN bank and the probe.
        eval_test_split: Split with the test images of the final evaluation.
        eval_train_images: Use only this many labelled training images, drawn at random; ``None`` uses all.
        eval_full_bank: Let kNN of the final evaluation vote with all labelled training images too (``knn_full``), where
            ``eval_train_images`` leaves some out. Off by default: it encodes every one of them.
        validation_fraction: Part of the labelled training images held out as queries of the online kNN.
        eval_batch_size: Images in a batch of the evaluation.
        fit: How images that are not square become so: ``crop`` cuts the centre out, ``pad`` adds the background,
            ``stretch`` scales height and width by themselves.
        background: Colour behind transparent pixels and around padded images, ``white`` or ``black``. Drawings and
            scans with transparency are made to be seen on white, and dark ink would vanish on black.
        window: Level and width of the values that become black to white in images of more than 8 bits; ``None`` takes
            all 16 bits, and a DICOM file's own window.
        max_bad_files: Largest number of files of a split of your own that are skipped because they cannot be read.
        in_memory: Hold the images in memory; ``None`` decides by size.
        download: Allow the download of absent data sets.
        seed: Seed of all splits; ``None`` takes the run's.

    Attributes:
        pool: All images to pretrain on, after ``setup("fit")``.
        eval_train: Labelled training images of the evaluation, after ``setup``.
        eval_test: Test images of the evaluation, after ``setup``.
        no_evaluation: Reason why nothing is evaluated, after ``setup``; then there are no images of the evaluation.
            Empty if there are.
        accounts: What was read, left out and changed of the user's own files, in a line for each split.
    """

    pool: ImageSet
    eval_train: ImageSet
    eval_test: ImageSet

    def __init__(
        self,
        dataset: str = "digits",
        root: str = "data",
        image_size: int | None = None,
        channels: int | None = None,
        split: str = "train",
        train_images: int | None = None,
        batch_size: int = 64,
        eval_dataset: str | None = None,
        eval_root: str | None = None,
        eval_train_split: str = "train",
        eval_test_split: str = "test",
        eval_train_images: int | None = None,
        eval_full_bank: bool = False,
        validation_fraction: float = 0.1,
        eval_batch_size: int = 256,
        fit: Literal["crop", "pad", "stretch"] = "crop",
        background: Literal["white", "black"] = "white",
        window: tuple[float, float] | None = None,
        max_bad_files: int = 0,
        in_memory: bool | None = None,
        download: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(2, batch_size=batch_size)  # one image alone is no step
        check_at_least(1, eval_batch_size=eval_batch_size)
        check_at_least(0, max_bad_files=max_bad_files)
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
        self.dataset, self.root, self.split = dataset, root, split
        self.image_size, self.channels = image_size, channels
        self.train_images, self.batch_size = train_images, batch_size
        # A root of its own, or a name, is meant: then missing labels are a mistake.
        self._evaluation_is_meant = eval_dataset is not None or eval_root is not None
        self.eval_dataset, self.eval_root = eval_dataset or dataset, eval_root or root
        self.eval_splits, self.eval_train_images = (eval_train_split, eval_test_split), eval_train_images
        self.eval_full_bank = eval_full_bank
        self.validation_fraction, self.eval_batch_size = validation_fraction, eval_batch_size
        self.decoding, self.max_bad_files = Decoding(fit, background, window), max_bad_files
        self.in_memory, self.download = in_memory, download
        self.seed = run_seed(seed)
        self.no_evaluation = "data.eval_dataset is none" if eval_dataset == NO_EVALUATION else ""
        if self.no_evaluation and (eval_root or eval_train_images or eval_full_bank):
            raise ValueError(
                "data.eval_dataset none evaluates nothing: leave eval_root, eval_train_images and eval_full_bank out"
            )
        self.accounts: dict[str, str] = {}
        # one copy in memory if a split is both pretrained on and evaluated with
        self._load = cache(self.read)

    def setup(self, stage: str) -> None:
        """Load the images that the stage needs, once."""
        if stage == "fit" and "pool" not in vars(self):
            self.pool = self._load_pool()
        if "eval_test" not in vars(self) and not self.no_evaluation:
            self._set_up_evaluation()
        if self.no_evaluation and stage != "fit":
            raise ValueError(f"nothing is evaluated, as {self.no_evaluation}: {MENDS}")

    def read(self, name: str, split: str, root: str) -> ImageSet:
        """Load a split of a data set as the settings say, and tell what was left out and changed."""
        images = load_images(
            name,
            split,
            root,
            self.image_size,
            self.channels,
            self.in_memory,
            self.download,
            loader=self._loader(name, root),
            decoding=self.decoding,
            max_bad_files=self.max_bad_files,
        )
        if images.account:
            of = f"{name}/{split}" + " in another root" * (root != self.root)
            self.accounts[of] = images.account
            logger.log(logging.WARNING if "," in images.account else logging.INFO, "%s: %s", of, images.account)
        return images

    @property
    def trained_on(self) -> str:
        """Number and data set of the images to pretrain on, in words."""
        return f"{len(self.pool):,} images (data set `{self.dataset}`)"

    @property
    def num_classes(self) -> int:
        """Number of classes of the evaluation."""
        return len(self.eval_train.classes)

    def train_dataloader(self) -> DataLoader:
        """Return a loader of shuffled uint8 batches (B, C, H, W) of the pool; every epoch has its own seed."""
        sampler = _EpochSampler(len(self.pool), self.batch_size, self.seed)
        return DataLoader(Batches(self.pool), sampler=sampler, batch_size=None)

    def val_dataloader(self) -> list[DataLoader]:
        """Return loaders of the online kNN's bank and queries, both cut from the labelled training images, if any."""
        if self.no_evaluation:
            return []
        order = torch.randperm(len(self.eval_train), generator=torch_generator(self.seed, "validation split"))
        queries, bank = cut(order, self.eval_train.groups, self._queries(len(order)))
        return [in_order(self.eval_train.subset(part), self.eval_batch_size) for part in (bank, queries)]

    def test_dataloader(self) -> list[DataLoader]:
        """Return loaders of the labelled training and test images, and of voters for ``knn_full`` only, if wanted."""
        loaded = [self.eval_train, self.eval_test, *([self._left_out()] if self.eval_full_bank else [])]
        return [in_order(images, self.eval_batch_size) for images in loaded]

    def _left_out(self) -> ImageSet:
        """Return the labelled training images that ``eval_train_images`` leaves out."""
        every = self._labelled(self.eval_splits[0])
        assert self.eval_train_images is not None
        return every.subset(self._order(len(every), "eval train images")[self.eval_train_images :])

    def _loader(self, name: str, root: str) -> Loader:
        return find_loader(name)

    def _load_pool(self) -> ImageSet:
        pool = self._some(self._load(self.dataset, self.split, self.root), self.train_images, "train images")
        looked_at = pool.gather(torch.linspace(0, len(pool) - 1, min(len(pool), LOOKED_AT)).long())
        if len(pool) > 1 and bool((looked_at == looked_at[:1]).all()):
            logger.warning(
                "%s: all images looked at (%d) are equal, there is nothing to learn", pool.name, len(looked_at)
            )
        return pool

    def _set_up_evaluation(self) -> None:
        train = self._to_evaluate(self.eval_splits[0])
        if not self._evaluation_is_meant and bool((train.labels < 0).all()):
            self.no_evaluation = f"the images of {self.eval_dataset} have no labels"
            logger.warning("nothing is evaluated, as %s; else %s", self.no_evaluation, MENDS.split(", or not")[0])
            return
        self.eval_train, self.eval_test = self._load_evaluation()

    def _labelled(self, split: str) -> ImageSet:
        """Load the labelled images of a split to evaluate with.

        Raises:
            FileNotFoundError: The split is absent.
            ValueError: None of its images has a label.
        """
        images = self._to_evaluate(split)
        labelled = torch.nonzero(images.labels >= 0).flatten()
        if not len(labelled):
            raise ValueError(f"{self.eval_dataset}/{split} has no labels to evaluate with: {MENDS}")
        if len(labelled) == len(images):
            return images
        logger.warning(
            "%s/%s: %d of %d images have labels to evaluate with", images.name, split, len(labelled), len(images)
        )
        return images.subset(labelled)

    def _to_evaluate(self, split: str) -> ImageSet:
        try:
            return self._load(self.eval_dataset, split, self.eval_root)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. Or {MENDS}") from error

    def _load_evaluation(self) -> tuple[ImageSet, ImageSet]:
        train, test = (self._labelled(split) for split in self.eval_splits)
        if bool((train.labels == train.labels[0]).all()):
            raise ValueError(f"{train.name} has one class only, nothing to tell apart: name another eval_dataset")
        if self.eval_full_bank and self.eval_train_images in (None, len(train)):
            raise ValueError(
                f"eval_full_bank adds the labelled images that eval_train_images leaves out, which are none of "
                f"{len(train)}: set --data.eval_train_images to less, or leave --data.eval_full_bank out"
            )
        train = self._some(train, self.eval_train_images, "eval train images")
        if not len(cut(torch.arange(len(train)), train.groups, self._queries(len(train)))[1]):
            raise ValueError(
                f"validation_fraction {self.validation_fraction} of {len(train)} labelled training images leaves none "
                "to compare the queries of the online kNN with: lower --data.validation_fraction or raise "
                "--data.eval_train_images"
            )
        return train, test

    def _queries(self, labelled: int) -> int:
        """Return the number of labelled training images held out as queries of the online kNN."""
        return max(1, round(self.validation_fraction * labelled))

    def _some(self, images: ImageSet, number: int | None, what: str) -> ImageSet:
        """Draw ``number`` of the images at random; ``None`` keeps all."""
        if number is None:
            return images
        if not 1 <= number <= len(images):
            raise ValueError(f"{what.replace(' ', '_')} {number}: {images.name} has 1 to {len(images)}")
        return images.subset(self._order(len(images), what)[:number].sort().values)

    def _order(self, number: int, what: str) -> Tensor:
        return torch.from_numpy(numpy_generator(self.seed, what).permutation(number))


class FederatedData(ImageData, ClientData):
    """Images of one data set, divided among clients.

    Args:
        clients: Number of clients, where the partition leaves it open.
        partition: Rule that divides the images among the clients. ``ByFolder`` and ``ByTable`` are for your own images.
        auxiliary_fraction: Part of the pool set aside before the division for server-side calibration, in whole groups.
        auxiliary_dataset: Another data set for server-side calibration; excludes ``auxiliary_fraction``.
        eval_clients: Evaluate the final encoder for each client too, on its own labelled images. Off by default: it
            encodes all training images once more.
        **kwargs: Arguments of ``ImageData`` but for ``batch_size``: local steps use the model's.
    """

    def __init__(
        self,
        clients: int = 10,
        partition: Partitioner = IID(),  # noqa: B008 (immutable)
        auxiliary_fraction: float = 0.0,
        auxiliary_dataset: str | None = None,
        eval_clients: bool = False,
        **kwargs: Any,
    ) -> None:
        if "batch_size" in kwargs:
            raise ValueError("data.batch_size is read in centralised training only: set --model.batch_size")
        super().__init__(batch_size=EVERY_CLIENTS_OWN, **kwargs)
        check_at_least(1, clients=clients)
        if not 0 <= auxiliary_fraction < 1:
            raise ValueError(f"auxiliary_fraction must be at least 0 and below 1, got {auxiliary_fraction}")
        if auxiliary_fraction and auxiliary_dataset:
            raise ValueError("set auxiliary_fraction or auxiliary_dataset, not both")
        if partition.loader and self.dataset != "folder":
            raise ValueError(
                f"{type(partition).__name__} divides your own files: set --data.dataset folder, got {self.dataset!r}"
            )
        self.num_clients = clients
        self.partition = partition
        self.auxiliary_fraction = auxiliary_fraction
        self.auxiliary_dataset = auxiliary_dataset
        self.eval_clients = eval_clients

    def setup(self, stage: str) -> None:
        """Load and divide the images."""
        super().setup(stage)
        if stage == "fit" and "datasets" not in vars(self):
            if self.eval_clients and len(self.pool.labels[self.pool.labels >= 0].unique()) < 2:
                raise ValueError(
                    f"data.eval_clients needs labelled training images of two classes or more, which {self.pool.name}"
                    f"/{self.split} has not: leave --data.eval_clients out"
                )
            self.datasets = self._divide(self.pool)
            if len(self.datasets.clients) != self.num_clients:
                logger.warning(
                    "%s has %d clients: data.clients %d is not read",
                    type(self.partition).__name__,
                    len(self.datasets.clients),
                    self.num_clients,
                )
                self.num_clients = len(self.datasets.clients)

    def train_dataloader(self) -> DataLoader:
        """Return a loader with one item an epoch instead of batches of the pool."""
        return ClientData.train_dataloader(self)

    def _divide(self, pool: ImageSet) -> ClientDatasets:
        rng = numpy_generator(self.seed, "partition")
        order = torch.from_numpy(rng.permutation(len(pool)))
        aside = round(self.auxiliary_fraction * len(pool))
        if self.auxiliary_fraction and not 0 < aside < len(pool):
            raise ValueError(
                f"auxiliary_fraction {self.auxiliary_fraction} sets {aside} of {len(pool)} images aside: some must be, "
                "and some must be left for the clients"
            )
        set_aside, left = cut(order, pool.groups, aside)
        held = divide(pool.subset(left.sort().values), self.partition, self.num_clients, rng)
        return replace(held, auxiliary=self._auxiliary(pool.subset(set_aside.sort().values)))

    def _loader(self, name: str, root: str) -> Loader:
        own = self.partition.loader if name == "folder" and root == self.root else None
        return own or super()._loader(name, root)

    def _auxiliary(self, set_aside: ImageSet) -> ImageSet | None:
        if self.auxiliary_dataset:
            return self._load(self.auxiliary_dataset, "train", self.root)
        return set_aside if len(set_aside) else None


class _EpochSampler(Sampler[Tensor]):
    """Sampler of index batches; Lightning sets the epoch, so that a resumed run shuffles as it would have."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images, self.batch_size, self.seed, self.epoch = num_images, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        # A generator function: a resumed run takes the iterator before Lightning sets the epoch.
        generator = torch_generator(self.seed, "centralized shuffle", self.epoch)
        yield from torch.randperm(self.num_images, generator=generator).split(self.batch_size)
