"""A ViT of two blocks on grey images of 16x16, large enough that plans have something to save."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch.optim import AdamW

from fedssl.costs.prediction import largest_batch
from fedssl.data.images import FederatedData
from fedssl.memory_budget.planner import ActivationPlanner
from fedssl.training.federated import FederatedSSL
from layerwise import EncoderSpec, EndToEnd
from ssl_methods import DigitsViews

SPEC = EncoderSpec(
    "vit_tiny_patch16_224",
    16,
    1,
    "sincos",
    {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, "global_pool": "avg", "class_token": False},
)


@pytest.fixture(scope="session")
def make_run(methods: dict[str, Any]) -> Callable[..., FederatedSSL]:
    def make(method: str = "SimCLR", **settings: Any) -> FederatedSSL:
        defaults: dict[str, Any] = {
            "encoder": SPEC,
            "method": methods[method],
            "augment": DigitsViews(),
            "optimizer": partial(AdamW, lr=1e-3),
            "scheme": EndToEnd(),
            "rounds": 2,
            "batch_size": 16,
            "seed": 0,
        }
        return FederatedSSL(**defaults | settings)

    return make


@pytest.fixture(scope="session")
def make_planner(make_run: Callable[..., FederatedSSL]) -> Callable[..., ActivationPlanner]:
    """Planners are shared by tests, because every outcome is a step that has to be run."""
    made: dict[str, ActivationPlanner] = {}

    def make(method: str = "SimCLR", anew: bool = False, **settings: Any) -> ActivationPlanner:
        key = f"{method} {sorted(settings)}"
        if anew or key not in made:
            made[key] = ActivationPlanner(make_run(method, **settings).settings.predictor(), largest_batch([100], 16))
        return made[key]

    return make


@pytest.fixture(scope="session")
def digits() -> FederatedData:
    data = FederatedData(clients=3, train_images=66, image_size=16, seed=0)
    data.setup("fit")
    return data
