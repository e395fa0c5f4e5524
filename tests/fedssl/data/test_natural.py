"""Natural partition, on pictures of one colour written here: the colour says which picture it is."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedssl.data.clients import cut
from fedssl.data.datasets import SampleSet
from fedssl.data.images import FederatedData
from fedssl.data.natural import ByFolder, ByTable
from fedssl.data.partition import Partitioner
from fedssl.data.texts import FederatedText


def write(root: Path, *files: str) -> None:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(root / file)


def table(root: Path, *rows: str, columns: str = "file,client,label,split,patient") -> None:
    """Write ``who.csv`` and the files that it names."""
    write(root, *(row.split(",")[0] for row in rows))
    (root / "who.csv").write_text("\n".join([columns, *rows]))


def loaded(root: Path, partition: Partitioner, **settings: Any) -> FederatedData:
    data = FederatedData(
        partition=partition, dataset="folder", root=str(root), image_size=4, channels=1, seed=0, **settings
    )
    data.setup("fit")
    return data


def held(data: FederatedData) -> dict[str, list[int]]:
    """Pictures of each client."""
    clients = zip(data.datasets.names, data.datasets.clients, strict=True)
    return {name: pictures(images) for name, images in clients}


def pictures(images: SampleSet) -> list[int]:
    return images.gather(torch.arange(len(images)))[:, 0, 0, 0].tolist()


# --- folders


def test_every_folder_with_folders_of_classes_is_a_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = ("train/south/b/1.png", "train/south/b/deep/2.png", "train/north/a/1.png", "train/north/b/1.png")
    write(tmp_path, *train, "test/b/1.png", "test/a/1.png")
    data = loaded(tmp_path, ByFolder())
    assert held(data) == {"north": [2, 3], "south": [0, 1]}
    assert [line.split() for line in data.table().splitlines()[:3]] == [
        ["client", "images", "a", "b"],
        ["north", "2", "1", "1"],
        ["south", "2", "0", "2"],
    ]
    assert pictures(data.eval_test) == [5, 4]
    assert data.eval_test.labels.tolist() == [0, 1]
    assert data.num_clients == 2
    assert caplog.messages == ["ByFolder has 2 clients: data.clients 10 is not read"]


@pytest.mark.parametrize("base", ["", "train/"])
def test_clients_without_classes_are_unlabelled(base: str, tmp_path: Path) -> None:
    write(tmp_path, f"{base}north/1.png", f"{base}south/1.png", f"{base}south/2.png", "test/north/3.png")
    data = loaded(tmp_path, ByFolder(), eval_dataset="digits")
    assert held(data) == {"north": [0], "south": [1, 2]}
    assert data.pool.labels.tolist() == [-1, -1, -1]


def test_test_images_may_lie_with_the_clients(tmp_path: Path) -> None:
    write(tmp_path, "train/n/a/1.png", "train/n/b/1.png", "train/s/b/1.png", "test/n/b/1.png", "test/s/a/1.png")
    data = loaded(tmp_path, ByFolder(), clients=2)
    assert data.eval_test.labels.tolist() == [1, 0]


def test_the_holders_stay_right_in_a_part_of_the_images(tmp_path: Path) -> None:
    folders = ("n/a", "n/b", "s/a", "s/b")
    write(tmp_path, *(f"train/{folder}/{i}.png" for folder in folders for i in range(10)), "test/a/1.png")
    for settings in ({"train_images": 20}, {"auxiliary_fraction": 0.5}, {"train_images": 30, "in_memory": False}):
        parts = held(loaded(tmp_path, ByFolder(), **settings))  # type: ignore[arg-type]
        assert all(picture < 20 for picture in parts["n"])
        assert all(picture >= 20 for picture in parts["s"])
        assert len(parts["n"]) + len(parts["s"]) == settings.get("train_images", 20)


def test_images_that_nobody_holds_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/stray.png", "train/n/a/1.png")
    with pytest.raises(ValueError, match=r"stray.png in no client's folder"):
        loaded(tmp_path, ByFolder())
    (tmp_path / "train/stray.png").rename(tmp_path / "train/n/stray.png")
    assert loaded(tmp_path, ByFolder(), eval_dataset="digits").pool.labels.tolist() == [-1, 0]


def test_a_client_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/n/{label}/{i}.png" for label in "ab" for i in range(3)), "test/a/1.png")
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(ValueError, match="client 'empty' has no training images"):
        loaded(tmp_path, ByFolder())


def test_only_own_files_have_holders() -> None:
    with pytest.raises(ValueError, match=r"set --data.dataset folder, got 'digits'"):
        FederatedData(partition=ByFolder(), seed=0)
    with pytest.raises(ValueError, match="ByFolder divides image files, and toy_dialogue has none"):
        FederatedText(partition=ByFolder(), context=16, seed=0).setup("fit")


def test_the_folder_of_an_image_may_be_a_patient(tmp_path: Path) -> None:
    train = [f"train/{'ns'[i % 2]}/{'ab'[i % 3 > 0]}/{'ns'[i % 2]}{i // 6}/{i}.png" for i in range(30)]
    write(tmp_path, *train, "test/a/t/1.png", "test/b/deep/u/1.png")
    data = loaded(tmp_path, ByFolder(patients=True), auxiliary_fraction=0.3)
    assert data.datasets.auxiliary is not None
    aside = {path.parent.name for path in data.datasets.auxiliary.files}
    assert aside
    assert not aside & {path.parent.name for client in data.datasets.clients for path in client.files}
    assert (data.pool.classes, data.eval_test.labels.tolist()) == (("a", "b"), [0, 1])
    shared = tmp_path / "train" / "n" / "s0" / "1.png"
    shared.parent.mkdir()
    Image.new("L", (4, 4)).save(shared)
    with pytest.raises(
        ValueError, match=r"folder .*: patient s0 has client n and s: .* set --data.partition.shared_pat"
    ):
        loaded(tmp_path, ByFolder(patients=True))
    pool = loaded(tmp_path, ByFolder(patients=True, shared_patients=True)).pool
    assert pool.labels[[path == shared for path in pool.files].index(True)] == -1
    (tmp_path / "test" / "a" / "t").rename(tmp_path / "test" / "a" / "n1")
    with pytest.raises(ValueError, match="patient n1 has split train and test: give every patient one split"):
        loaded(tmp_path, ByFolder(patients=True, shared_patients=True))
    with pytest.raises(ValueError, match=r"set --data.partition.patients true"):
        ByFolder(shared_patients=True)


# --- tables


def test_a_table_gives_client_label_and_split(tmp_path: Path) -> None:
    rows = ("x/0.png,south,b,train", "x/1.png,north,a,train", "x/2.png,south,,train", "x/3.png,north,b,test")
    table(tmp_path, *rows, columns="file,client,label,split")
    data = loaded(tmp_path, ByTable("who.csv"), eval_dataset="digits")
    assert held(data) == {"north": [1], "south": [0, 2]}
    assert data.pool.labels.tolist() == [1, 0, -1]
    assert [path.name for path in data.datasets.clients[1].files] == ["0.png", "2.png"]
    test = data._load("folder", "test", data.root)
    assert (pictures(test), test.labels.tolist()) == ([3], [1])


def test_without_the_column_the_folder_is_the_split(tmp_path: Path) -> None:
    table(tmp_path, "train/0.png,n", "test/1.png,n", "other/2.png,s", columns="file,client")
    data = loaded(tmp_path, ByTable("who.csv"), eval_dataset="digits")
    assert held(data) == {"n": [0], "s": [2]}


def test_no_cut_divides_a_patient(tmp_path: Path) -> None:
    rows = [f"{i}.png,{'ns'[i % 2]},{'ab'[i // 4 % 2]},train,{i // 6}-{i % 2}" for i in range(60)]
    table(tmp_path, *rows, "60.png,n,a,test,")
    data = loaded(tmp_path, ByTable("who.csv"), auxiliary_fraction=0.3, validation_fraction=0.4)
    auxiliary = data.datasets.auxiliary
    assert auxiliary is not None
    voters, queries = (
        torch.cat([images for images, _ in loader])[:, 0, 0, 0].tolist() for loader in data.val_dataloader()
    )
    clients = [picture for part in held(data).values() for picture in part]
    for part, rest in ((pictures(auxiliary), clients), (queries, voters)):
        assert sorted(part + rest) == list(range(60))
        assert 18 <= len(part) < 30
        assert not {(i // 6, i % 2) for i in part} & {(i // 6, i % 2) for i in rest}


def test_groups_come_whole_and_in_order() -> None:
    order, groups = torch.tensor([4, 0, 3, 1, 2]), np.array([7, 7, 8, 9, 9])
    first, rest = cut(order, groups, 1)
    assert (first.tolist(), rest.tolist()) == ([4, 3], [0, 1, 2])
    assert [len(part) for part in cut(order, groups, 3)] == [4, 1]
    assert cut(order, None, 3)[0].tolist() == [4, 0, 3]
    assert cut(order, groups, 0)[1].tolist() == order.tolist()


ROW = "0.png,n,a,train,p"


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (["0.png,n"], "file,hospital", "columns file, hospital: file and client are needed, label, split and patient"),
        (["0.png,n,1"], "file,client,age", "has the columns file, client, age"),
        ([ROW, "1.png,n,a,training,q"], None, "split must be train, val, test, got 'training'"),
        ([ROW, "1.png,,a,train,q"], None, "client must not be empty"),
        ([ROW, "./0.png,s,a,train,q"], None, "files in more than one row: '0.png'"),
        ([ROW, "1.png,n,a"], None, r"rows \[2\] have more or fewer cells"),
        ([ROW, "1.png,n,a,test,p"], None, "patient p has split train and test: give every patient one split"),
        (
            [ROW, "1.png,s,a,train,p"],
            None,
            "patient p has client n and s: .* set --data.partition.shared_patients true",
        ),
    ],
)
def test_tables_are_checked(rows: list[str], columns: str | None, message: str, tmp_path: Path) -> None:
    table(tmp_path, *rows, **({"columns": columns} if columns else {}))
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, ByTable("who.csv"), eval_dataset="digits")


def test_clients_may_share_a_patient_if_the_table_may(tmp_path: Path) -> None:
    table(tmp_path, ROW, "1.png,s,a,train,p")
    data = loaded(tmp_path, ByTable("who.csv", shared_patients=True), eval_dataset="digits")
    assert held(data) == {"n": [0], "s": [1]}


def test_missing_files_and_other_forms_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, ROW)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"not found below --data.root .*: '0.png'"):
        loaded(tmp_path, ByTable("who.csv"))
    with pytest.raises(FileNotFoundError, match=r"none.csv not found under root"):
        loaded(tmp_path, ByTable("none.csv"))
    (tmp_path / "who.csv").rename(tmp_path / "who.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="is Parquet: pip install pyarrow, or save it as CSV"):
        loaded(tmp_path, ByTable("who.parquet"))


def test_a_table_may_be_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    from pyarrow import parquet

    write(tmp_path, "0.png", "1.png", "2.png")
    columns = {"file": ["0.png", "1.png", "2.png"], "client": ["s", "n", "s"], "patient": [7, 8, None]}
    parquet.write_table(arrow.table(columns), tmp_path / "who.parquet")
    data = loaded(tmp_path, ByTable("who.parquet"), eval_dataset="digits")
    assert held(data) == {"n": [1], "s": [0, 2]}
    assert data.pool.groups is not None
    assert len(set(data.pool.groups)) == 3
    (tmp_path / "who.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"who.parquet is no readable Parquet"):
        loaded(tmp_path, ByTable("who.parquet"))
