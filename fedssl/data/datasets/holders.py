"""Readers of images that come with their holders: a folder for each client, or a table with a row for each file."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fedssl.data.datasets.folders import not_images
from fedssl.data.datasets.listing import files_below, image_files, images_below, subfolders
from fedssl.data.datasets.source import Files, Holders, Loader, find

SPLITS = ("train", "val", "test")
COLUMNS = ("file", "client", "label", "split", "patient")
FIRST = 3
"""Rows or names that a message shows."""

Row = dict[str, str]


def client_folders_loader(patients: bool, shared_patients: bool) -> Loader:
    """Return the reader of a folder for each client; with ``patients`` the folder that has an image is its patient."""
    inner = "<patient>/" if patients else ""
    layout = (
        f"train/<client>/<class>/{inner}* and test/<class>/{inner}* or test/<client>/<class>/{inner}*, or unlabelled: "
        f"train/<client>/{inner}* or <client>/{inner}* in the root"
    )
    return Loader(partial(_read_client_folders, patients, shared_patients), "folders of clients", "", layout)


def _read_client_folders(patients: bool, shared_patients: bool, root: Path, split: str) -> Files:
    """Read a folder for each client, with or without folders of classes in it.

    The clients' folders lie in the folder of the split, those of training else in the root. Test images may lie in
    folders of classes without those of clients.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: Images lie beside the folders of the clients, or a patient is at two places.
    """
    base = find(root / split) if split != "train" or (root / split).is_dir() else root
    if loose := image_files(base):
        raise ValueError(
            f"{base} has images such as {loose[0].name} in no client's folder: ByFolder gives them to nobody"
        )
    folders = {part: _client_folders(root, part) for part in ("train", "test")}
    rows = [row for part, each in folders.items() for folder in each for row in _rows_of_folder(folder, part, patients)]
    known = {row["label"] for row in rows}
    if {folder.name for folder in folders["test"]} <= known:  # they are classes
        rows = [_of_class(row) if row["split"] == "test" else row for row in rows]
    _check_patients(f"folder {root}", rows, shared_patients)
    clients = [folder.name for folder in folders["train"]] if split == "train" else _named(rows, "client")
    others = not_images(path for folder in folders[split] for path in files_below(folder))
    return replace(_files_of(rows, split, clients, root), others=others)


def _client_folders(root: Path, split: str) -> list[Path]:
    """Return the folders of the clients in a split; in the root if there is no folder of training."""
    if split != "train" or (root / split).is_dir():
        return subfolders(root / split)
    return [folder for folder in subfolders(root) if folder.name != "test"]


def _rows_of_folder(folder: Path, split: str, patients: bool) -> list[Row]:
    """List the images of a client: of the folders below it the first is the class, the last the patient."""
    rows = []
    for path in images_below(folder):
        below = path.relative_to(folder).parts[:-1]
        label = below[0] if len(below) > int(patients) else ""
        patient = below[-1] if patients and below else ""
        rows.append({"file": str(path), "client": folder.name, "label": label, "split": split, "patient": patient})
    return rows


def _of_class(row: Row) -> Row:
    """Return the row of an image whose first folder is its class and no client."""
    return row | {"client": "", "label": row["client"]}


def table_loader(table: str, shared_patients: bool) -> Loader:
    """Return the reader of the files of a table."""
    read = partial(_read_table, table, shared_patients)
    return Loader(read, "table of files", "", f"{table}, a CSV or Parquet file of {', '.join(COLUMNS)}", splits=SPLITS)


def _read_table(table: str, shared_patients: bool, root: Path, split: str) -> Files:
    """Read the files of one split of a table.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: The table, or a file that it names, is not as it should be.
    """
    path = find(root / table, Path(table))
    rows = _rows(path)
    _check_rows(path, rows, root)
    _check_patients(f"table {path}", rows, shared_patients)
    return _files_of(rows, split, _named(rows, "client"), root)


def _files_of(rows: list[Row], split: str, clients: Sequence[str], root: Path) -> Files:
    """Return the files of one split, labelled and held as the rows of all splits say."""
    classes, chosen = _named(rows, "label"), [row for row in rows if row["split"] == split]
    # Who is no named patient stands for themselves.
    people = [row["patient"] or f"of {row['file']}" for row in chosen]
    groups = _positions(people, dict.fromkeys(people)) if any(row["patient"] for row in rows) else None
    owners = _positions([row["client"] for row in chosen], clients)
    labels = _positions([row["label"] for row in chosen], classes)
    return Files([root / row["file"] for row in chosen], labels, classes, holders=Holders(clients, owners, groups))


def _named(rows: list[Row], column: str) -> list[str]:
    return sorted({row[column] for row in rows} - {""})


def _positions(values: Sequence[str], names: Iterable[str]) -> np.ndarray:
    """Position of each value among the names, (N,); -1 for an empty one."""
    positions = {name: position for position, name in enumerate(names)} | {"": -1}
    return np.array([positions[value] for value in values], dtype=np.int64)


def _rows(path: Path) -> list[Row]:
    """Read the rows of a table, with every column; absent ones are empty, and the split may be the file's folder."""
    columns, read = (_parquet if path.suffix.lower() in (".parquet", ".pq") else _csv)(path)
    _check_columns(path, columns)
    uneven = [number for number, row in enumerate(read, 1) if None in row or None in row.values()]
    if uneven:
        raise ValueError(f"table {path}: rows {uneven[:FIRST]} have more or fewer cells than there are columns")
    rows = [dict.fromkeys(COLUMNS, "") | {key: cell.strip() for key, cell in row.items()} for row in read]
    return rows if "split" in columns else [row | {"split": _split_of(row["file"])} for row in rows]


def _csv(path: Path) -> tuple[Sequence[str], list[Row]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            return reader.fieldnames or (), list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"table {path} is no readable CSV in UTF-8: {error}") from error


def _parquet(path: Path) -> tuple[Sequence[str], list[Row]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"table {path} is Parquet: pip install pyarrow, or save it as CSV") from error
    try:
        table = parquet.read_table(path)
    except Exception as error:  # of a dozen types
        raise ValueError(f"table {path} is no readable Parquet: {error}") from error
    rows = [{key: "" if cell is None else str(cell) for key, cell in row.items()} for row in table.to_pylist()]
    return table.column_names, rows


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


def _check_patients(where: str, rows: list[Row], shared: bool) -> None:
    """Refuse a patient in several splits, or at several clients unless that is allowed."""
    mends = {"split": "give every patient one split"}
    if not shared:
        mends["client"] = "give different people different names, or set --data.partition.shared_patients true"
    for column, mend in mends.items():
        seen: dict[str, str] = {}
        for row in (row for row in rows if row["patient"]):
            patient, value = row["patient"], row[column]
            if seen.setdefault(patient, value) != value:
                raise ValueError(f"{where}: patient {patient} has {column} {seen[patient]} and {value}: {mend}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
    return ", ".join(map(repr, names[:FIRST])) + more
