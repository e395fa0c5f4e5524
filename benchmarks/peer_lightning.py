"""Peer: a Lightning Trainer for every client, with one resident module, no logs and no checkpoints."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from benchmarks.peer_job import EPOCHS, ROUNDS, client_images, loader, make_method
from benchmarks.round_times import tick

State = dict[str, Tensor]


def main(times: Path) -> None:
    """Federated averaging in the plainest way."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    method, clients = make_method(), [(len(labels), loader(images, labels)) for images, labels in client_images()]
    tick(times)
    for _ in range(ROUNDS):
        start = {key: tensor.clone() for key, tensor in method.state_dict().items()}
        mean = {key: torch.zeros_like(tensor, dtype=torch.float32) for key, tensor in start.items()}
        for images, batches in clients:
            method.load_state_dict(start)
            Trainer(accelerator="cpu", devices=1, max_epochs=EPOCHS, barebones=True).fit(method, batches)
            add(mean, method.state_dict(), images)
        everyone = sum(images for images, _ in clients)
        method.load_state_dict({key: tensor / everyone for key, tensor in mean.items()})
        tick(times)


def add(mean: State, state: State, images: int) -> None:
    """A client's share."""
    for key, tensor in state.items():
        mean[key].add_(tensor, alpha=images)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
