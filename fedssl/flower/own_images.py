"""Clients whose images never leave them: each node names its own folder, which the server cannot read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from fedssl.data.clients import ClientDatasets
from fedssl.data.datasets import ImageSet
from fedssl.data.images import NO_EVALUATION, FederatedData
from fedssl.training.federated import FederatedSSL


class OwnImages(FederatedData):
    """Training images on the nodes themselves; the server holds those of evaluation and calibration only.

    A node's folder is the ``images`` of its ``--node-config``, laid out like the data set ``folder``. Only Flower's
    clients have images of their own: ``train.py fit`` refuses this class.

    Args:
        dataset: Labelled data set to evaluate on.
        clients: Number of clients.
        images_per_client: Assumed number of images of a client until it reports its own.
        auxiliary_dataset: Data set that the server calibrates on.
        **kwargs: Keyword arguments of ``fedssl.data.images.ImageData``.
    """

    def __init__(
        self,
        dataset: str = "digits",
        clients: int = 10,
        images_per_client: int = 1000,
        auxiliary_dataset: str | None = None,
        **kwargs: Any,
    ) -> None:
        if images_per_client < 2:
            raise ValueError(f"images_per_client must be at least 2, got {images_per_client}")
        if kwargs.get("eval_dataset") == NO_EVALUATION:
            raise ValueError("OwnImages need a labelled data set, which says what the clients' images are like")
        if kwargs.get("eval_clients"):
            raise ValueError("the server has no images of the clients: leave --data.eval_clients out")
        super().__init__(dataset=dataset, clients=clients, auxiliary_dataset=auxiliary_dataset, **kwargs)
        self.images_per_client = images_per_client

    @property
    def trained_on(self) -> str:
        """Tell that only the nodes know."""
        return "Images that devices hold themselves"

    def train_dataloader(self) -> DataLoader:
        """Loader of one item an epoch.

        Raises:
            ValueError: The clients would train in this process, which has no images of theirs.
        """
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, FederatedSSL) or module.engine is None:
            raise ValueError("OwnImages are on Flower's nodes: use flwr run, see docs/deployment.md")
        return super().train_dataloader()

    def table(self) -> str:
        """Return the number of clients: the server knows no more of the division."""
        return f"{self.num_clients} clients hold images of their own"

    def class_counts(self) -> np.ndarray:
        """Empty counts (clients, 0): only the nodes know their classes."""
        return np.zeros((self.num_clients, 0), dtype=int)

    def _load_pool(self) -> ImageSet:
        # The server has no training images; those of the evaluation lend placeholders their shape.
        return self._load(self.eval_dataset, self.eval_splits[0], self.eval_root)

    def _divide(self, pool: ImageSet) -> ClientDatasets:
        """Create placeholders of the assumed length, the clients' provisional weight; nobody trains on them."""
        stand_in = pool.subset(torch.zeros(self.images_per_client, dtype=torch.int64))
        # Nothing is cut off the pool: calibration takes its images from a data set of its own.
        return ClientDatasets([stand_in] * self.num_clients, self._auxiliary(pool.subset(torch.arange(0))))
