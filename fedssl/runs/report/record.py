"""A run as its folder tells it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedssl.data.clients import ClientData
from fedssl.data.disclosure import without_paths
from fedssl.data.images import ImageData
from fedssl.runs.run_folder import CONFIG, RESULTS
from fedssl.server.rounds import ClientCost
from fedssl.training.federated import FederatedSSL
from fedssl.training.pretraining import Pretraining
from fedssl.utils.files import write_atomically
from linear_eval import EvaluationDetails

METRICS = "metrics.csv"
OFF_SCALE = 1e300
"""Larger values are left out of figures like NaN and infinity, for the margins of an axis would be infinite."""
Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class RunRecord:
    """What a finished run left.

    Args:
        folder: Where.
        configuration: The text of ``config.yaml``.
        results: ``results.json``.
        rows: ``metrics.csv``, one row a round (or epoch), without the final evaluation.
        evaluation: What pictures of the evaluation need, if the run kept it.
        clients: What each client held and paid; ``None`` without a federation.
    """

    folder: Path
    configuration: str
    results: dict[str, Any]
    rows: list[dict[str, str]]
    evaluation: EvaluationDetails | None
    clients: ClientDetails | None

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Reads a run folder.

        Raises:
            FileNotFoundError: It holds no finished run.
        """
        if not (folder / RESULTS).is_file():
            raise FileNotFoundError(f"{folder} holds no finished run: there is no {RESULTS}")
        evaluation, clients = read_details(folder / DETAILS)
        return cls(
            folder,
            (folder / CONFIG).read_text(),
            json.loads((folder / RESULTS).read_text()),
            _training_rows(folder / METRICS),
            evaluation,
            clients,
        )

    @property
    def config(self) -> dict[str, Any]:
        """``config.yaml`` as data."""
        return yaml.safe_load(self.configuration)

    @property
    def shown_configuration(self) -> str:
        """``config.yaml`` for other eyes: without places on this machine."""
        return yaml.safe_dump(without_paths(self.config), sort_keys=False)

    @property
    def federated(self) -> bool:
        """Whether the run had rounds and clients."""
        return "clients" in self.results

    @property
    def unit(self) -> str:
        """What the horizontal axes count."""
        return "round" if self.federated else "epoch"

    @property
    def name(self) -> str:
        """Scheme and method."""
        return f"{self.results['scheme']} {self.results['method']}"

    @property
    def loaded_weights(self) -> bool:
        """Whether training started from weights in a file, and not from random initialisation."""
        encoder = self.config["model"]["init_args"].get("encoder") or {}
        return bool(encoder.get("init_args", encoder).get("weights"))

    @property
    def encoders(self) -> dict[str, str]:
        """What each evaluated encoder is called; before training is what the run started from.

        Runs of older versions did not evaluate the weights that they had loaded.
        """
        if not self.loaded_weights:
            return {"random_init": "before training", "encoder": "after training"}
        return {"random_init": "at random initialisation", "start": "before training", "encoder": "after training"}

    def curve(self, key: str) -> Curve:
        """Rounds (or epochs) from 1, and the metric, where it was measured and is a number of reasonable size."""
        rows = [row for row in self.rows if row.get(key) and abs(float(row[key])) < OFF_SCALE]
        return [float(row["epoch"]) + 1 for row in rows], [float(row[key]) for row in rows]

    def stages(self) -> list[int]:
        """The last round of each stage; empty without stages."""
        rounds, stages = self.curve("stage")
        ends = [at for at, (stage, following) in enumerate(pairwise(stages)) if stage != following]
        return [int(rounds[at]) for at in ends] + [int(at) for at in rounds[-1:]]


def _training_rows(metrics: Path) -> list[dict[str, str]]:
    if not metrics.exists():
        return []
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = max((float(row["epoch"]) for row in rows if row.get("round") or row.get("train/loss")), default=-1.0)
    return [row for row in rows if float(row["epoch"]) <= last]


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
