"""Natural partition: the data themselves say who holds what, by folder or by table."""

from collections.abc import Sequence

import numpy as np

from fedssl.data.datasets import SampleSet
from fedssl.data.datasets.holders import client_folders_loader, table_loader
from fedssl.data.datasets.source import Loader
from fedssl.data.partition import Partitioner


class NaturalPartitioner(Partitioner):
    """Base of the partitions that give every client what it holds in truth.

    There are as many clients as the data name; ``data.clients`` is not read. Clients are numbered in the order of their
    names.
    """

    uses_labels = False
    loader: Loader

    def client_names(self, samples: SampleSet, num_clients: int) -> Sequence[str]:
        """Names of the clients, as the data have them.

        Raises:
            ValueError: The data do not say who holds what.
        """
        if samples.holders is None:
            raise ValueError(f"{type(self).__name__} divides image files, and {samples.name} has none: choose another")
        return samples.holders.names

    def _divide(self, samples: SampleSet, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        assert samples.holders is not None
        owners = samples.holders.clients[samples.rows.numpy()]
        parts = [np.flatnonzero(owners == client) for client in range(num_clients)]
        empty = [name for name, part in zip(samples.holders.names, parts, strict=True) if not len(part)]
        if empty:
            raise ValueError(
                f"client {empty[0]!r} has no training images: give it some, raise --data.train_images, lower "
                "--data.auxiliary_fraction, or take the client out"
            )
        return parts


class ByFolder(NaturalPartitioner):
    """Natural partition by folder: every folder in the training folder is a client, ``train/<client>/...``.

    A client's images may lie in folders of classes, ``train/<client>/<class>/...``. Without a folder ``train`` the
    clients' folders are those of the root.

    Args:
        patients: Take the folder that an image lies in for the patient whom it shows,
            ``train/<client>/<class>/<patient>`` or, unlabelled, ``train/<client>/<patient>``. No patient may be in
            training and test images, and what is cut off the training images has whole patients.
        shared_patients: Let several clients have images of the same patient, whose folders have the same name.
    """

    def __init__(self, patients: bool = False, shared_patients: bool = False) -> None:
        if shared_patients and not patients:
            raise ValueError("shared_patients needs patients: set --data.partition.patients true")
        self.loader = client_folders_loader(patients, shared_patients)


class ByTable(NaturalPartitioner):
    """Natural partition by table: a row for each image file says which client holds it.

    Its columns are ``file``, below ``data.root``; ``client``; and optionally ``label``, empty for none; ``split``,
    which is ``train``, ``val`` or ``test``, otherwise the file's first folder if that is one of these, and else
    ``train``; and ``patient``, or another group of images that belong together. No patient may be in two splits, and
    what is cut off the training images, for calibration or as queries of the online kNN, has whole patients.

    Args:
        table: CSV file, or Parquet file if pyarrow is installed, looked for below ``data.root`` first.
        shared_patients: Let several clients have images of the same patient, whom the table names alike.
    """

    def __init__(self, table: str, shared_patients: bool = False) -> None:
        self.loader = table_loader(table, shared_patients)
