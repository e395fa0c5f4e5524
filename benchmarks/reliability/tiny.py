"""A federation small enough to attack it thousands of times: the real server, without images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.optim import SGD

from fedssl.federation.federation import Federation
from fedssl.federation.settings import CohortSettings, FederationSettings, ModelSettings, ServerSettings
from fedssl.protocol.messages import Result, Tensors, flatten
from fedssl.server.aggregation import Aggregation
from fedssl.server.selection import Selector
from fedssl.server.server import Server
from layerwise import EncoderSpec, EndToEnd
from ssl_methods import SimCLR, TwoViews

OPTIONS: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "num_heads": 2, "global_pool": "avg", "class_token": False}
IMAGES = 100


def tiny_server(rule: Aggregation, clients: int, selector: Selector | None = None, seed: int = 0) -> Server:
    """A ViT of one block and width 16, trained end to end by clients of 100 images each, all in every round."""
    spec = EncoderSpec("vit_tiny_patch16_224", 8, 1, "sincos", OPTIONS | {"depth": 1})
    method = partial(SimCLR, hidden_dim=16, output_dim=8)
    settings = FederationSettings(
        model=ModelSettings(encoder=spec, method=method, augment=TwoViews(), optimizer=partial(SGD, lr=0.1)),
        scheme=EndToEnd(),
        rounds=1000,
        cohort=CohortSettings(selector=selector),
        server=ServerSettings(aggregation=rule),
        seed=seed,
    )
    return Federation(settings, [IMAGES] * clients).server


def weights(server: Server) -> Tensors:
    """The global floating-point tensors, sharing memory with the model."""
    own = flatten(server.model.read(server.model.parts))
    return {key: tensor for key, tensor in own.items() if tensor.is_floating_point()}


def directions(server: Server, norm: float, seed: int) -> Tensors:
    """A random change of all tensors of some norm."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in weights(server).items()}
    return {key: tensor * (norm / norm_of(drawn)) for key, tensor in drawn.items()}


def norm_of(tensors: Tensors) -> float:
    """Euclidean norm of all tensors as one vector."""
    return sum(tensor.double().square().sum().item() for tensor in tensors.values()) ** 0.5


def answer(server: Server, client: int, change: Tensors, **fields: Any) -> Result:
    """Result that a client would send if its training had changed the global weights by ``change``."""
    task = server.make_task(client)
    parts = {
        part: {name: tensor + change.get(f"{part}/{name}", 0) for name, tensor in tensors.items()}
        for part, tensors in task.active.items()
    }
    given: dict[str, Any] = {"num_images": IMAGES, "loss": 1.0, "squared_loss": 1.0, "macs": 10, "activation_bytes": 10}
    given["steps"] = 1
    return Result(client, parts, **given | fields)
