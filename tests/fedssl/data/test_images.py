"""The data modules, on the digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedssl.data.datasets import ArrayImages, ImageSet
from fedssl.data.images import FederatedData, ImageData
from fedssl.data.natural import ByFolder
from fedssl.data.partition import Dirichlet

IMAGES = 1438
"""Training images of the digits."""
IMAGES_OF_TEST = 359


def loaded(stage: str = "fit", **settings: Any) -> FederatedData:
    data = FederatedData(**{"seed": 0, "clients": 4} | settings)
    data.setup(stage)
    return data


def rows(images: ImageSet | None) -> list[int]:
    """Where images lie in the storage that all parts share."""
    assert images is not None
    return images.rows.tolist()


def write_folder(root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("a", "b")) -> None:
    generator = np.random.default_rng(0)
    for split, number in splits.items():
        for i in range(number):
            folder = root / split / classes[i % len(classes)] if classes else root / split
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")


# --- clients


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_every_image_has_one_place(fraction: float) -> None:
    data = loaded(auxiliary_fraction=fraction)
    held = [row for client in data.datasets.clients for row in rows(client)]
    auxiliary = rows(data.datasets.auxiliary) if data.datasets.auxiliary else []
    assert sorted(held + auxiliary) == list(range(len(data.pool))) == list(range(IMAGES))
    assert len(auxiliary) == round(fraction * IMAGES)
    assert len(data.datasets.clients) == 4


def test_no_auxiliary_images_unless_asked_for() -> None:
    assert loaded().datasets.auxiliary is None


def test_a_split_to_train_and_evaluate_on_is_held_once() -> None:
    data = loaded()
    assert isinstance(data.pool, ArrayImages)
    assert isinstance(data.eval_train, ArrayImages)
    assert data.pool.images.data_ptr() == data.eval_train.images.data_ptr()


def test_images_of_clients_are_those_of_the_pool() -> None:
    data = loaded(auxiliary_fraction=0.1)
    assert isinstance(data.pool, ArrayImages)
    storage = data.pool.images.data_ptr()
    auxiliary = data.datasets.auxiliary
    assert auxiliary is not None
    for part in [*data.datasets.clients, auxiliary]:
        assert isinstance(part, ArrayImages)
        assert part.images.data_ptr() == storage
        first = part.gather(torch.tensor([0]))
        assert torch.equal(first, data.pool.gather(part.rows[:1]))
        assert part.labels[0] == data.pool.labels[part.rows[0]]


def test_division_follows_the_seed() -> None:
    settings: dict[str, Any] = {"partition": Dirichlet(0.5), "auxiliary_fraction": 0.1}
    first, again, other = (loaded(seed=seed, **settings).datasets for seed in (0, 0, 1))
    assert [rows(client) for client in first.clients] == [rows(client) for client in again.clients]
    assert rows(first.auxiliary) == rows(again.auxiliary) != rows(other.auxiliary)
    assert [rows(client) for client in first.clients] != [rows(client) for client in other.clients]


def test_auxiliary_images_may_come_from_another_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 5})
    data = loaded(auxiliary_dataset="folder", root=str(tmp_path), image_size=8, channels=1)
    auxiliary = data.datasets.auxiliary
    assert auxiliary is not None
    assert (auxiliary.name, len(auxiliary)) == ("folder", 5)
    assert sum(len(client) for client in data.datasets.clients) == IMAGES


def test_train_images_takes_a_random_part() -> None:
    small, again, other = (loaded(train_images=50, seed=seed) for seed in (0, 0, 1))
    assert len(small.pool) == 50 == sum(len(client) for client in small.datasets.clients)
    assert len(set(rows(small.pool))) == 50
    assert rows(small.pool) == rows(again.pool) != rows(other.pool)
    assert rows(small.pool) == sorted(rows(small.pool)) != list(range(50))
    assert len(small.eval_train) == IMAGES


def test_eval_train_images_takes_a_random_part_of_the_labelled_images() -> None:
    few, again, other = (loaded(eval_train_images=50, seed=seed) for seed in (0, 0, 1))
    assert rows(few.eval_train) == rows(again.eval_train) != rows(other.eval_train)
    assert len(set(rows(few.eval_train))) == 50
    assert sum(len(y) for _, y in few.test_dataloader()[0]) == 50
    assert len(few.eval_test) == IMAGES_OF_TEST
    assert len(few.pool) == IMAGES


def test_the_full_bank_is_all_that_was_left_out() -> None:
    data = loaded(eval_train_images=50, eval_full_bank=True)
    first, _, rest = (torch.cat([images for images, _ in loader]) for loader in data.test_dataloader())
    together, every = torch.cat([first, rest]), loaded().eval_train.gather(torch.arange(IMAGES))
    assert sorted(together.flatten(1).tolist()) == sorted(every.flatten(1).tolist())
    for number in (None, IMAGES):
        with pytest.raises(ValueError, match=f"none of {IMAGES}: set --data.eval_train_images to less"):
            loaded(eval_train_images=number, eval_full_bank=True)


def test_an_item_of_the_loader_is_the_federation() -> None:
    data = loaded()
    items = list(data.train_dataloader())
    assert len(items) == 1
    assert items[0] is data.datasets


def test_table_counts_images_and_classes() -> None:
    data = loaded(partition=Dirichlet(0.3), clients=3)
    lines = [line.split() for line in data.table().splitlines()]
    assert lines[0] == ["client", "images", *map(str, range(10))]
    for row, client in zip(lines[1:4], data.datasets.clients, strict=True):
        assert row[1] == str(len(client))
        assert row[2:] == [str(n) for n in torch.bincount(client.labels, minlength=10).tolist()]
    assert lines[4][:2] == ["all", str(IMAGES)]


def test_set_up_again_keeps_the_division() -> None:
    data = loaded()
    before = data.datasets
    data.setup("fit")
    data.setup("test")
    assert data.datasets is before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 0}, "clients must be at least 1, got 0"),
        ({"batch_size": 8}, "read in centralised training only"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1, got -1"),
        ({"auxiliary_fraction": 1.0}, "auxiliary_fraction must be at least 0 and below 1, got 1.0"),
        ({"auxiliary_fraction": -0.1}, "auxiliary_fraction must be"),
        (
            {"auxiliary_fraction": 0.1, "auxiliary_dataset": "digits"},
            "set auxiliary_fraction or auxiliary_dataset, not both",
        ),
        ({"validation_fraction": 0.0}, "validation_fraction must lie between 0 and 1, got 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedData(seed=0, **settings)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        ImageData(seed=0, batch_size=1)


@pytest.mark.parametrize("number", [0, IMAGES + 1])
@pytest.mark.parametrize("setting", ["train_images", "eval_train_images"])
def test_images_must_be_there(setting: str, number: int) -> None:
    with pytest.raises(ValueError, match=f"^{setting} {number}: digits has 1 to {IMAGES}"):
        loaded(**{setting: number})


def test_more_clients_than_images() -> None:
    with pytest.raises(ValueError, match="need 11 images, but there are 10"):
        loaded(train_images=10, clients=11)


def test_seed_may_come_from_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")
    assert ImageData().seed == 9
    assert ImageData(seed=3).seed == 3


# --- evaluation


def test_validation_queries_are_not_in_the_bank_and_not_of_the_test_split() -> None:
    data = loaded("validate")
    bank, queries = ([images for images, _ in loader] for loader in data.val_dataloader())
    bank_set, query_set = ({image.numpy().tobytes() for image in torch.cat(part)} for part in (bank, queries))
    assert sum(map(len, bank)) + sum(map(len, queries)) == IMAGES
    assert sum(map(len, queries)) == round(0.1 * IMAGES)
    train = {image.numpy().tobytes() for image in data.eval_train.images}
    assert len(train) == IMAGES  # all digits differ, so that sets of pixels tell them apart
    assert not bank_set & query_set
    assert bank_set | query_set == train
    assert not train & {image.numpy().tobytes() for image in data.eval_test.images}


def test_validation_split_follows_the_seed() -> None:
    def labels(seed: int) -> list[int]:
        return torch.cat([y for _, y in loaded("validate", seed=seed).val_dataloader()[1]]).tolist()

    assert labels(0) == labels(0) != labels(1)


def test_a_tiny_validation_fraction_keeps_one_query() -> None:
    data = loaded("validate", validation_fraction=1e-6)
    assert sum(len(y) for _, y in data.val_dataloader()[1]) == 1


def test_test_loaders_give_all_images_with_their_labels() -> None:
    data = loaded("test", eval_batch_size=500)
    train, test = data.test_dataloader()
    assert [len(y) for _, y in train] == [500, 500, 438]
    assert torch.equal(torch.cat([y for _, y in test]), data.eval_test.labels)
    assert torch.equal(torch.cat([x for x, _ in test]), data.eval_test.images)
    assert data.num_classes == 10


def test_transfer_evaluates_on_another_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 9, "test": 3}, ("a", "b", "c"))
    data = loaded(eval_dataset="folder", root=str(tmp_path), image_size=8, channels=1)
    assert (data.pool.name, data.eval_train.name, data.eval_test.name) == ("digits", "folder", "folder")
    assert (len(data.pool), len(data.eval_train), len(data.eval_test)) == (IMAGES, 9, 3)
    assert data.num_classes == 3


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_evaluation_needs_labels(stage: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 6, "test": 2}, classes=())
    settings = {"dataset": "folder", "root": str(tmp_path), "image_size": 8}
    with pytest.raises(ValueError, match="folder/train has no labels to evaluate with: evaluate on"):
        loaded(stage, **settings, eval_dataset="folder")
    data = loaded(stage, **settings, eval_dataset="digits", channels=1)
    assert data.num_classes == 10


def test_images_without_labels_are_trained_on_and_not_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "ward" / "2026", {"may": 6, "june": 3}, classes=())
    data = loaded(dataset="folder", root=str(tmp_path), image_size=8)
    assert len(data.pool) == 9
    assert data.val_dataloader() == []
    assert data.no_evaluation == "the images of folder have no labels"
    assert "--data.eval_root" in caplog.text
    with pytest.raises(ValueError, match="nothing is evaluated, as the images of folder have no labels: evaluate on"):
        data.setup("test")


def test_evaluation_can_be_left_out() -> None:
    data = loaded(eval_dataset="none")
    assert (len(data.pool), data.no_evaluation) == (IMAGES, "data.eval_dataset is none")
    with pytest.raises(ValueError, match="leave eval_root, eval_train_images and eval_full_bank out"):
        loaded(eval_dataset="none", eval_train_images=5)


def test_the_evaluation_has_a_root_of_its_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "pool", {".": 7}, classes=())
    write_folder(tmp_path / "labelled", {"train": 6, "test": 2})
    roots = {"root": str(tmp_path / "pool"), "eval_root": str(tmp_path / "labelled")}
    data = loaded(dataset="folder", image_size=8, **roots)
    assert (len(data.pool), len(data.eval_train), len(data.eval_test)) == (7, 6, 2)
    with pytest.raises(FileNotFoundError, match="Or evaluate on a labelled set of another folder with"):
        loaded(dataset="folder", image_size=8, root=roots["root"], eval_root=str(tmp_path / "none"))


def test_the_labelled_images_are_evaluated_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", {"north": 4, "south": 6}, classes=())
    write_folder(tmp_path / "train", {"east": 8})
    write_folder(tmp_path, {"test": 2})
    data = loaded(dataset="folder", root=str(tmp_path), image_size=8, partition=ByFolder(), clients=3)
    assert (len(data.pool), len(data.eval_train)) == (18, 8)
    assert "folder/train: 8 of 18 images have labels to evaluate with" in caplog.messages


# --- centralised batches


def test_pooled_batches_cover_every_image_in_an_order_of_their_epoch() -> None:
    data = ImageData(train_images=50, batch_size=16, seed=0)
    data.setup("fit")

    def epoch(number: int) -> torch.Tensor:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        batches = [images for images, _ in loader]
        assert [len(batch) for batch in batches] == [16, 16, 16, 2]
        assert len(loader) == 4
        return torch.cat(batches)

    first, again, second = epoch(0), epoch(0), epoch(1)
    pool = data.pool.gather(torch.arange(50))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    for images in (first, second):
        assert sorted(i.numpy().tobytes() for i in images) == sorted(i.numpy().tobytes() for i in pool)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0.999, "eval_train_images": 100}, "validation_fraction 0.999 of 100 labelled"),
        ({"eval_train_images": 1}, "of 1 labelled training images leaves none"),
        ({"auxiliary_fraction": 0.999, "train_images": 60}, "auxiliary_fraction 0.999 sets 60 of 60 images aside"),
        ({"auxiliary_fraction": 0.001, "train_images": 60}, "auxiliary_fraction 0.001 sets 0 of 60 images aside"),
    ],
)
def test_every_part_has_an_image(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(**settings)


@pytest.mark.parametrize("value", [0, 7])
def test_equal_images_are_said(value: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(90) % 3
    images = np.full((90, 8, 8), value, np.uint8)
    splits = {"train": images, "test": images[:30]}
    arrays = {f"{split}_images": array for split, array in splits.items()}
    arrays |= {f"{split}_labels": labels[: len(array), None] for split, array in splits.items()}
    np.savez(tmp_path / "plain.npz", **arrays)
    loaded(dataset="medmnist:plain", root=str(tmp_path))
    assert caplog.messages == ["medmnist:plain: all images looked at (64) are equal, there is nothing to learn"]
    caplog.clear()
    loaded()
    assert not caplog.messages


def test_one_class_cannot_be_evaluated(tmp_path: Path) -> None:
    images, labels = np.arange(30 * 64, dtype=np.uint8).reshape(30, 8, 8), np.zeros((30, 1), np.int64)
    splits = {f"{split}_{what}": array for split in ("train", "test") for what, array in
              (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "single.npz", **splits)
    with pytest.raises(ValueError, match="medmnist:single has one class only"):
        loaded(dataset="medmnist:single", root=str(tmp_path))
