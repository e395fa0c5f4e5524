"""Peer: a plain Flower app, with ClientApp and FedAvg as in Flower's documents, in Flower's simulation."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from benchmarks.flower import start_simulation
from benchmarks.peer_job import CLIENTS, EPOCHS, ROUNDS, client_images, loader, make_method
from benchmarks.round_times import tick
from ssl_methods import SimCLR

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
client = ClientApp()
server = ServerApp()


@lru_cache
def resident() -> tuple[SimCLR, list[tuple[Tensor, Tensor]]]:
    """Model and images, once in a process."""
    return make_method().to(DEVICE), client_images()


@client.train()
def train(message: Message, context: Context) -> Message:
    """A client's round."""
    method, clients = resident()
    images, labels = clients[context.node_config["partition-id"]]
    method.load_state_dict(message.content["arrays"].to_torch_state_dict())
    method.train()
    optimizer = method.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in loader(images, labels):
            loss = method.training_step([each.to(DEVICE) for each in batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    metrics = MetricRecord({"loss": loss.item(), "num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(method.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Federated averaging of all clients, every round."""
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    times = Path(sys.argv[1])
    strategy.start(grid, ArrayRecord(make_method().state_dict()), num_rounds=ROUNDS, evaluate_fn=lambda *_: tick(times))


if __name__ == "__main__":
    from benchmarks import peer_flower  # Ray finds its functions by name, in other processes

    start_simulation(peer_flower.server, peer_flower.client, CLIENTS, int(sys.argv[2]))
