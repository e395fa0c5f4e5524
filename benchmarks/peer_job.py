"""Work that all peers do: model, clients and local steps, without any federation."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fedssl import FederatedData
from layerwise import EncoderSpec, build_encoder
from ssl_methods import DigitsViews, Foundation, SimCLR

CLIENTS = 100
ROUNDS = 4
EPOCHS = 3
BATCH = 64
SEED = 42
VIT = {"patch_size": 4, "depth": 6, "embed_dim": 64, "num_heads": 4, "global_pool": "avg", "class_token": False}


def make_method() -> SimCLR:
    """The model of ``configs/fedssl.yaml``, as an ordinary Lightning module."""
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", 16, 1, "sincos", VIT | {"weight_init": "moco"}), SEED)
    optimizer = partial(AdamW, lr=4e-3, weight_decay=1e-5)
    return SimCLR(Foundation(encoder, encoder.feature_dim, DigitsViews(), optimizer), hidden_dim=256, output_dim=128)


def client_images() -> list[tuple[Tensor, Tensor]]:
    """Images uint8 (N, 1, 16, 16) and labels (N,) of every client, in memory, divided as a run of ours divides them."""
    data = FederatedData(dataset="digits", image_size=16, clients=CLIENTS, seed=SEED)
    data.setup("fit")
    return [(client.images[client.rows], client.labels) for client in data.datasets.clients]


def loader(images: Tensor, labels: Tensor) -> DataLoader:
    """Shuffled batches, each gathered by one index operation."""
    dataset = TensorDataset(images, labels)
    return DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), BATCH, False), batch_size=None)
