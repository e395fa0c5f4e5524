"""``details.npz``: what the pictures of a run need beyond its metrics and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedssl.client_data import ClientData
from fedssl.data import ImageData
from fedssl.federated import FederatedSSL
from fedssl.files import write_atomically
from fedssl.ledger import ClientCost
from fedssl.pretraining import Pretraining
from linear_eval import EvaluationDetails

DETAILS = "details.npz"
CLIENTS = "clients."


@dataclass(frozen=True)
class ClientDetails:
    """What each client held and paid; one row a client.

    Attributes:
        classes: Names of the classes, (C,); none where the images have no labels.
        images: Number of images of each class, (clients, C).
        rounds: Rounds whose result counted, (clients,).
        down_bytes: Received, (clients,).
        up_bytes: Sent, (clients,).
        macs: Multiply-accumulates of local training, (clients,).
        activation_bytes: Most bytes kept for backward in one step, (clients,).
    """

    classes: np.ndarray
    images: np.ndarray
    rounds: np.ndarray
    down_bytes: np.ndarray
    up_bytes: np.ndarray
    macs: np.ndarray
    activation_bytes: np.ndarray


def write_details(module: Pretraining, data: ImageData | ClientData, path: Path, pictures: bool = False) -> None:
    """Collects and writes the details of a run that has been evaluated.

    Args:
        module: The run's.
        data: Its images or texts.
        path: Of the file.
        pictures: Whether images of the data are in it.

    Raises:
        OSError: The disk refused; an older file is untouched.
    """
    arrays = module.details(pictures).as_arrays() if module.reports else {}
    if isinstance(module, FederatedSSL) and isinstance(data, ClientData):
        arrays |= {CLIENTS + key: value for key, value in vars(client_details(module, data)).items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def read_details(path: Path) -> tuple[EvaluationDetails | None, ClientDetails | None]:
    """Reads :func:`write_details`; ``None`` for what is not there."""
    if not path.exists():
        return None, None
    with np.load(path, allow_pickle=False) as file:
        arrays: Mapping[str, np.ndarray] = dict(file)
    clients = {key.removeprefix(CLIENTS): value for key, value in arrays.items() if key.startswith(CLIENTS)}
    evaluation = EvaluationDetails.from_arrays(arrays) if "layers" in arrays else None
    return evaluation, ClientDetails(**clients) if clients else None


def client_details(module: FederatedSSL, data: ClientData) -> ClientDetails:
    """From the ledger of the server and the division of the data."""
    assert module.server is not None
    paid = module.server.ledger.clients
    costs = [vars(paid.get(client, ClientCost())) for client in range(data.num_clients)]
    return ClientDetails(
        classes=np.asarray(data.pool.classes, dtype=str),
        images=data.class_counts(),
        **{key: np.asarray([cost[key] for cost in costs]) for key in costs[0]},
    )
