"""Local training in micro-batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD

from fedssl import FederatedSSL, GlobalAlignment
from fedssl.federation.federation import Federation
from layerwise import EncoderSpec, EndToEnd, LayerWise, Scheme
from ssl_methods import DigitsViews


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        (LayerWise(), "MoCoV3"),
        (EndToEnd(), "SimCLR"),
        (EndToEnd(), "Supervised"),
        pytest.param(LayerWise(), "BYOL", marks=pytest.mark.slow),
        pytest.param(EndToEnd(), "MoCoV3", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_rounds_end_in_the_same_weights(scheme: Scheme, method: str, make_world: Callable[..., Any]) -> None:
    alignment = None if method == "Supervised" else GlobalAlignment()
    worlds = [make_world(scheme, method=method, alignment=alignment, proximal=0.1) for _ in range(2)]
    worlds[1].local.model.in_micro_batches(3)
    whole, micro = (world.run(2) for world in worlds)
    assert micro[-1].activation_bytes < whole[-1].activation_bytes
    assert micro[-1].macs > whole[-1].macs
    whole_weights, micro_weights = (world.weights() for world in worlds)
    for key, tensor in whole_weights.items():
        torch.testing.assert_close(micro_weights[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_calibration_on_the_server_has_whole_batches(make_model: Callable[..., Any]) -> None:
    model, stage = make_model().in_micro_batches(2), LayerWise().stages(3, 3)[1]
    model.attach(stage)
    assert model.method.backbone.size == 2
    model.attach_whole(stage)
    assert not hasattr(model.method.backbone, "size")


@pytest.fixture
def make_module(vit_spec: EncoderSpec, methods: dict[str, Any]) -> Callable[..., FederatedSSL]:
    optimizer = partial(SGD, lr=0.01)

    def make(spec: EncoderSpec = vit_spec, **settings: Any) -> FederatedSSL:
        return FederatedSSL(spec, methods["SimCLR"], DigitsViews(), optimizer, LayerWise(), 3, seed=0, **settings)

    return make


def test_the_setting_reaches_clients_and_plans(make_module: Callable[..., FederatedSSL]) -> None:
    module = make_module(micro_batch=4)
    federation = Federation(module.settings, [8])
    local = federation.client
    assert local.model.micro_batch == federation.predictor.model.micro_batch == 4
    assert local.settings()["micro-batch"] == 4


def test_what_does_not_go_together_is_refused(
    make_module: Callable[..., FederatedSSL], resnet_spec: EncoderSpec
) -> None:
    with pytest.raises(ValueError, match="leave out micro_batch 4, or the budget"):
        make_module(micro_batch=4, memory_budget="10MiB")
    with pytest.raises(ValueError, match="needs an encoder that treats every image by itself"):
        make_module(resnet_spec, micro_batch=4)
    with pytest.raises(ValueError, match="micro_batch must be at least 1 image, got 0"):
        make_module(micro_batch=0)
