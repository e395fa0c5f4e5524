"""Readers of images that come with their holders: a folder for each client, or a table with a row for each file."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fedssl.data.datasets.folders import labelled_files, not_images
from fedssl.data.datasets.listing import files_below, image_files, images_below, subfolders
from fedssl.data.datasets.source import Files, Holders, Loader, find

SPLITS = ("train", "val", "test")
COLUMNS = ("file", "client", "label", "split", "patient")
FIRST = 3
"""Rows or names that a message shows."""

Row = dict[str, str]


def read_client_folders(root: Path, split: str) -> Files:
    """Read a folder for each client, with or without folders of classes in it.

    The clients' folders lie in the folder of the split, those of training else in the root. Test images may lie in
    folders of classes without those of clients.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: Images lie beside the folders of the clients.
    """
    base = find(root / split) if split != "train" or (root / split).is_dir() else root
    clients = [folder for folder in subfolders(base) if base != root or folder.name != "test"]
    loose = image_files(base)
    if loose:
        raise ValueError(
            f"{base} has images such as {loose[0].name} in no client's folder: ByFolder gives them to nobody"
        )
    known = {inner.name for folder in clients for inner in subfolders(folder)}
    known |= {inner.name for folder in subfolders(root / "train") for inner in subfolders(folder)}
    others = not_images(path for folder in clients for path in files_below(folder))
    if split == "test" and clients and {folder.name for folder in clients} <= known:
        return replace(labelled_files({folder.name: images_below(folder) for folder in clients}, known), others=others)
    held = [_of_client(folder) for folder in clients]
    classes = sorted(known)
    labels = _positions([name for each in held for name, _ in each], classes)
    files = [path for each in held for _, path in each]
    owners = np.repeat(np.arange(len(clients)), [len(each) for each in held])
    return Files(files, labels, classes, holders=Holders([folder.name for folder in clients], owners), others=others)


def _of_client(folder: Path) -> list[tuple[str, Path]]:
    """List the images of a client, each with the name of its class; empty names for images without classes."""
    labelled = [(each.name, path) for each in subfolders(folder) for path in images_below(each)]
    return [("", path) for path in image_files(folder)] + labelled


CLIENT_FOLDERS = Loader(
    read_client_folders,
    "folders of clients",
    "",
    "train/<client>/<class>/* and test/<class>/* or test/<client>/<class>/*, or unlabelled: train/<client>/* or "
    "<client>/* in the root",
)


def table_loader(table: str, shared_patients: bool) -> Loader:
    """Return the reader of the files of a table."""
    read = partial(_read_table, table, shared_patients)
    return Loader(read, "table of files", "", f"{table}, a CSV file of {', '.join(COLUMNS)}", splits=SPLITS)


def _read_table(table: str, shared_patients: bool, root: Path, split: str) -> Files:
    """Read the files of one split of a table.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: The table, or a file that it names, is not as it should be.
    """
    path = find(root / table, Path(table))
    rows = _rows(path)
    _check_rows(path, rows, root)
    _check_patients(path, rows, shared_patients)
    names = {column: sorted({row[column] for row in rows} - {""}) for column in ("client", "label")}
    chosen = [row for row in rows if row["split"] == split]
    # Who is no named patient stands for themselves.
    people = [row["patient"] or f"of {row['file']}" for row in chosen]
    groups = _positions(people, dict.fromkeys(people)) if any(row["patient"] for row in rows) else None
    clients, labels = (_positions([row[column] for row in chosen], known) for column, known in names.items())
    files = [root / row["file"] for row in chosen]
    return Files(files, labels, names["label"], holders=Holders(names["client"], clients, groups))


def _positions(values: Sequence[str], names: Iterable[str]) -> np.ndarray:
    """Position of each value among the names, (N,); -1 for an empty one."""
    positions = {name: position for position, name in enumerate(names)} | {"": -1}
    return np.array([positions[value] for value in values], dtype=np.int64)


def _rows(path: Path) -> list[Row]:
    """Read the rows of a table, with every column; absent ones are empty, and the split may be the file's folder."""
    if path.suffix.lower() in (".parquet", ".pq"):
        raise ValueError(
            f"table {path} is Parquet, which is not read: save it as CSV and name that in --data.partition.table"
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_columns(path, reader.fieldnames or ())
            read = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"table {path} is no readable CSV in UTF-8: {error}") from error
    uneven = [number for number, row in enumerate(read, 1) if None in row or None in row.values()]
    if uneven:
        raise ValueError(f"table {path}: rows {uneven[:FIRST]} have more or fewer cells than there are columns")
    rows = [dict.fromkeys(COLUMNS, "") | {key: cell.strip() for key, cell in row.items()} for row in read]
    by_folder = "split" not in (reader.fieldnames or ())
    return [row | {"split": _split_of(row["file"])} for row in rows] if by_folder else rows


def _split_of(file: str) -> str:
    first = Path(file).parts[:1]
    return first[0] if first and first[0] in SPLITS else "train"


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    unknown = [column for column in columns if column not in COLUMNS]
    missing = [column for column in ("file", "client") if column not in columns]
    if unknown or missing or len(set(columns)) < len(columns):
        raise ValueError(
            f"table {path} has the columns {', '.join(columns)}: file and client are needed, label, split and patient "
            "are allowed, each once"
        )


def _check_rows(path: Path, rows: list[Row], root: Path) -> None:
    for column, allowed in (("file", None), ("client", None), ("split", SPLITS)):
        wrong = [row[column] for row in rows if not row[column] or (allowed and row[column] not in allowed)]
        if wrong:
            must = f"must be {', '.join(allowed)}" if allowed else "must not be empty"
            raise ValueError(f"table {path}: {column} {must}, got {_some(wrong)}")
    files = [row["file"] for row in rows]
    twice = [file for file, number in Counter(map(os.path.normpath, files)).items() if number > 1]
    if twice:
        raise ValueError(f"table {path} has files in more than one row: {_some(twice)}")
    absent = [file for file in files if not (root / file).is_file()]
    if absent:
        raise ValueError(f"table {path}: not found below --data.root {root}: {_some(absent)}")


def _check_patients(path: Path, rows: list[Row], shared: bool) -> None:
    """Refuse a patient in several splits, or at several clients unless that is allowed."""
    mends = {"split": "give every patient one split"}
    if not shared:
        mends["client"] = "give different people different names, or set --data.partition.shared_patients true"
    for column, mend in mends.items():
        seen: dict[str, str] = {}
        for row in (row for row in rows if row["patient"]):
            patient, value = row["patient"], row[column]
            if seen.setdefault(patient, value) != value:
                raise ValueError(f"table {path}: patient {patient} has {column} {seen[patient]} and {value}: {mend}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
    return ", ".join(map(repr, names[:FIRST])) + more
