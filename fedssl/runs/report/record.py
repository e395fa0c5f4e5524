"""Record of a finished run, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedssl.data.clients import ClientData
from fedssl.data.images import ImageData
from fedssl.runs.run_folder import CONFIG, METRICS, RESULTS, read_metrics, read_results
from fedssl.server.rounds import ClientCost
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.utils.files import write_atomically
from linear_eval import EvaluationDetails

OFF_SCALE = 1e300
"""Limit of values in figures. Larger ones are left out like NaN and infinity: they would make an axis infinite."""
Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RunRecord:
    """Files of a finished run.

    Args:
        folder: Run folder.
        config: Content of ``config.yaml``.
        results: Content of ``results.json``.
        rows: Rows of ``metrics.csv``, one a round (or epoch), without the final evaluation.
        evaluation: Data for the figures of the evaluation; ``None`` if the run did not keep them.
        clients: Data and costs of each client; ``None`` without a federation.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    rows: list[dict[str, str]]
    evaluation: EvaluationDetails | None
    clients: ClientDetails | None

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read a run folder.

        Raises:
            FileNotFoundError: The folder holds no finished run.
        """
        if not (folder / RESULTS).is_file():
            raise FileNotFoundError(f"{folder} holds no finished run: there is no {RESULTS}")
        config, rows = yaml.safe_load((folder / CONFIG).read_text()), read_metrics(folder / METRICS)
        # The final evaluation logs a row of its own after the last round.
        last = max((float(row["epoch"]) for row in rows if row.get("round") or row.get("train/loss")), default=-1.0)
        training = [row for row in rows if float(row["epoch"]) <= last]
        return cls(folder, config, read_results(folder), training, *read_details(folder / DETAILS))

    @property
    def federated(self) -> bool:
        """Tell if the run had rounds and clients."""
        return "clients" in self.results

    @property
    def unit(self) -> str:
        """Unit of the horizontal axes."""
        return "round" if self.federated else "epoch"

    @property
    def name(self) -> str:
        """Names of scheme and method."""
        return f"{self.results['scheme']} {self.results['method']}"

    @property
    def encoders(self) -> dict[str, str]:
        """Display name of each evaluated encoder; "before training" is the one that the run started from.

        Runs of older versions did not evaluate the weights that they had loaded.
        """
        encoder = self.config["model"]["init_args"].get("encoder") or {}
        if not encoder.get("init_args", encoder).get("weights"):
            return {"random_init": "before training", "encoder": "after training"}
        return {"random_init": "at random initialisation", "start": "before training", "encoder": "after training"}

    def curve(self, key: str) -> Curve:
        """Return rounds (or epochs) from 1 and values of a metric, where it was measured and is below ``OFF_SCALE``."""
        rows = [row for row in self.rows if row.get(key) and abs(float(row[key])) < OFF_SCALE]
        return np.array([float(row["epoch"]) + 1 for row in rows]), np.array([float(row[key]) for row in rows])

    def stages(self) -> list[int]:
        """Return the last round of each stage; empty without stages."""
        rounds, stages = self.curve("stage")
        return rounds[np.diff(stages, append=-1) != 0].astype(int).tolist()


DETAILS = "details.npz"
CLIENTS = "clients."


@dataclass(frozen=True)
class ClientDetails:
    """Data and costs of each client; one row a client.

    Attributes:
        classes: Names of the classes, (C,); C is 0 for images without labels.
        images: Number of images of each class, (clients, C).
        rounds: Number of rounds whose result counted, (clients,).
        down_bytes: Bytes received, (clients,).
        up_bytes: Bytes sent, (clients,).
        macs: Multiply-accumulates of local training, (clients,).
        activation_bytes: Largest number of bytes kept for backward in one step, (clients,).
        names: Names of the clients, (clients,): numbers, or as the data name them.
    """

    classes: np.ndarray
    images: np.ndarray
    rounds: np.ndarray
    down_bytes: np.ndarray
    up_bytes: np.ndarray
    macs: np.ndarray
    activation_bytes: np.ndarray
    names: np.ndarray


def write_details(module: Pretraining, data: ImageData | ClientData, path: Path, pictures: bool = False) -> None:
    """Collect and write the details of an evaluated run.

    Args:
        module: Evaluated module.
        data: Images or texts of the run.
        path: File to write.
        pictures: Include images of the data.

    Raises:
        OSError: The disk refused to write; an older file is untouched.
    """
    arrays = module.details(pictures).as_arrays() if module.reports else {}
    if isinstance(module, FederatedSSL) and isinstance(data, ClientData):
        arrays |= {CLIENTS + key: value for key, value in vars(_client_details(module, data)).items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def read_details(path: Path) -> tuple[EvaluationDetails | None, ClientDetails | None]:
    """Read the file of ``write_details``; ``None`` for missing details."""
    if not path.exists():
        return None, None
    with np.load(path, allow_pickle=False) as file:
        arrays: Mapping[str, np.ndarray] = dict(file)
    clients = {key.removeprefix(CLIENTS): value for key, value in arrays.items() if key.startswith(CLIENTS)}
    if clients:  # earlier runs named none
        clients.setdefault("names", np.arange(len(clients["images"])).astype(str))
    evaluation = EvaluationDetails.from_arrays(arrays) if "layers" in arrays else None
    return evaluation, ClientDetails(**clients) if clients else None


def _client_details(module: FederatedSSL, data: ClientData) -> ClientDetails:
    """Collect client details from the server's ledger and the division of the data."""
    assert module.federation is not None
    paid = module.federation.server.ledger.clients
    costs = [vars(paid.get(client, ClientCost())) for client in range(data.num_clients)]
    paid_by_client = {key: np.asarray([cost[key] for cost in costs]) for key in costs[0]}
    classes, names = (np.asarray(each, dtype=str) for each in (data.pool.classes, data.client_names))
    return ClientDetails(classes, data.class_counts(), names=names, **paid_by_client)
